"""`python -m agent` is `podhook`."""

from agent.entry import main

main()
