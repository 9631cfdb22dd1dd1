"""The attackers of SECURITY.md, with real processes and real brokers: each gets what is granted there, no more."""
