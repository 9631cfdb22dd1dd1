"""The journal: what was received, started, finished and delivered, in SQLite.

It is the record of a pod: whatever is not in it was never acknowledged, and nothing runs that it could not write
down first. `file` opens, migrates and sets aside; `record` is what can be asked and written; `thread` keeps it off
the event loop.
"""

from agent.journal.record import Entry, Journal, Memory, Said
from agent.journal.thread import JournalThread

__all__ = ["Entry", "Journal", "JournalThread", "Memory", "Said"]
