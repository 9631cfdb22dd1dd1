"""Whatever comes, an answer of ours: harnesses that try to make podhook's readers say anything else.

`make test` gives each a hundred inputs, `make fuzz` minutes on every core: see `__main__`. Nothing here looks at which
lines an input reaches (a coverage-guided fuzzer would need a compiler's help); instead most inputs are valid documents
with something wrong in them, so that they get past the first check.
"""
