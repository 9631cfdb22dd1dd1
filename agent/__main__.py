"""`python -m agent` is `podhook`."""

from agent.cli import main

main()
