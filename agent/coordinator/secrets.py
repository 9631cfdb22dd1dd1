"""Values of Secrets that a call fills into its action: said to travel, and taken out of what is told of the run."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

from agent.contract.messages import CapturedStream, Result
from agent.contract.templates import Executor
from agent.coordinator.results import OnEvent, RunEvent

if TYPE_CHECKING:
    from agent.contract.redaction import Redactor
    from agent.coordinator.calls import HookCall

#: What stands in a text where an agent cut it (agent.contract.outcomes).
_CUT = re.compile(r"(\n\[\.\.\. \d+ bytes cut \.\.\.\]\n)")
#: Where the action of an executor stands, and what keeps Secrets out of it.
_WHERE = {
    "Pod": "the trigger: whoever reads the broker reads them; a mounted Secret (valueFrom.file) keeps them in the pod",
    "Function": "the Job: whoever may read Jobs reads them; secretKeyRef in the Function's env keeps them out of it",
}


@dataclass(frozen=True, slots=True)
class Secrets:
    """Those of one call. `notes` are sentences for its result."""

    notes: tuple[str, ...] = ()
    _redactor: Redactor | None = field(default=None, repr=False)

    @classmethod
    def of(cls, call: HookCall, executor: Executor) -> Self:
        """What a call's action tells, and to whom."""
        names = call.secrets_told()
        if not names:
            return cls()
        from agent.contract.redaction import Redactor  # noqa: PLC0415 (few calls have secrets)

        redactor = Redactor([call.variables[name].encode() for name in names])
        if executor.type == "Operator":
            return cls((), redactor)
        where = _WHERE[executor.type]
        return cls((f"{', '.join(names)}: values of Secrets stand in {where}",), redactor)

    def taken_out(self, result: Result) -> Result:
        """The result without them."""
        redactor = self._redactor
        if redactor is None:
            return result
        from agent.contract.outcomes import redacted  # noqa: PLC0415

        streams = {"stdout": _without(result.stdout, redactor), "stderr": _without(result.stderr, redactor)}
        return redacted(result.model_copy(update=streams), redactor)

    def kept_from(self, on_event: OnEvent) -> OnEvent:
        """Somebody who watches, and sees none of them."""
        if self._redactor is None:
            return on_event
        redactor = self._redactor

        def tell(event: RunEvent) -> None:
            result = self.taken_out(event.result) if event.result is not None else None
            on_event(replace(event, text=redactor.text(event.text), result=result))

        return tell


def _without(stream: CapturedStream, redactor: Redactor) -> CapturedStream:
    """What an agent kept of a stream; at the place where it cut, parts of a secret go as well."""
    if stream.encoding == "base64":
        data = redactor.data(base64.b64decode(stream.text), cut=stream.truncated, begun=stream.truncated)
        return stream.model_copy(update={"text": base64.b64encode(data).decode()})
    head, *rest = _CUT.split(stream.text, maxsplit=1) if stream.truncated else [stream.text]
    text = redactor.data(head.encode(errors="surrogatepass"), cut=bool(rest)).decode(errors="replace")
    if rest:
        mark, tail = rest
        text += mark + redactor.data(tail.encode(errors="surrogatepass"), begun=True).decode(errors="replace")
    return stream.model_copy(update={"text": text})
