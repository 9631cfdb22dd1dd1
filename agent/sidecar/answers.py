"""Answers to queries: the journal of the pod is the record, and whoever asks later hears what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from agent.contract.errors import JournalFull, JournalUnavailable
from agent.contract.messages import AttemptReport, Query, Report
from agent.journal import Journal, JournalThread, Memory
from agent.sidecar import admission
from agent.sidecar.replies import Replies, report_of
from agent.sidecar.trust import Voucher


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers queries from the journal; while that cannot be used, from what this process has at hand.

    `at_hand` tells the attempts that this process knows without a journal, `journal_failed` hears of one that
    cannot be used and returns why.
    """

    replies: Replies
    journal: JournalThread
    now: Callable[[], datetime]
    at_hand: Callable[[], Iterable[AttemptReport]]
    journal_failed: Callable[[JournalUnavailable], JournalUnavailable]

    async def to(self, query: Query, voucher: Voucher, query_hash: str) -> Report:
        """What is known of a run, of one attempt of it, or of the latest attempts. Never raises."""
        report = await self._to(query, voucher)
        return report.model_copy(update={"query_hash": query_hash})

    async def _to(self, query: Query, voucher: Voucher) -> Report:
        try:
            if query.run_id is None:
                return await self._latest(query)
            return await self._about(query, query.run_id, voucher)
        except JournalFull as full:  # no tombstone fits, so "never seen" could not stay true
            return self.replies.report(query, [], self.now(), cannot_tell=str(full))
        except JournalUnavailable as error:
            found = [
                each
                for each in self.at_hand()
                if query.run_id in (None, each.run_id) and query.attempt in (None, each.attempt)
            ]
            return self.replies.report(query, found, self.now(), cannot_tell=str(self.journal_failed(error)))

    async def _latest(self, query: Query) -> Report:
        entries = await self.journal.call(Journal.latest, query.limit)
        return self.replies.report(query, [report_of(entry, with_output=False) for entry in entries], self.now())

    async def _about(self, query: Query, run_id: str, voucher: Voucher) -> Report:
        """Every key's attempts are told; whether there is none, and shall be none, is a matter of the asker's own."""
        told = (await self.journal.call(Journal.remember, run_id, query.attempt)).entries
        memory = await self.journal.call(Journal.remember, run_id, query.attempt, voucher.kid)
        entries = [entry for entry in told if query.attempt in (None, entry.attempt)]
        own = [entry for entry in memory.entries if query.attempt in (None, entry.attempt)]
        cannot_tell = None if own else self._reach(query, memory)
        binds = "" if voucher.operator else voucher.kid  # nobody ends what another key may begin
        tombstoned = memory.tombstoned and not own
        if not own and query.settle and cannot_tell is None:
            assert query.attempt is not None
            assert query.deadline is not None
            await self.journal.call(Journal.tombstone, run_id, query.attempt, query.deadline, self.now(), binds)
            tombstoned = True
        attempts = [report_of(entry, with_output=entry is entries[-1]) for entry in entries]
        return self.replies.report(
            query,
            attempts,
            self.now(),
            tombstoned=tombstoned,
            tombstoned_for=binds or None,
            cannot_tell=cannot_tell,
        )

    def _reach(self, query: Query, memory: Memory) -> str | None:
        if query.pod_uid is None or query.issued_at is None or query.deadline is None:
            return "the query does not say for which pod uid, issued_at and deadline"
        return admission.reach(
            query.pod_uid, query.issued_at, query.deadline, memory, self.replies.identity, self.now()
        )
