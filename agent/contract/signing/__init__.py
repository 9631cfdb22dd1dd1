"""Who said it: keys, the signed envelope around a message, and what a key may do.

Imports joserfc and with it cryptography (10 MB): imported only where a key is configured.
"""
