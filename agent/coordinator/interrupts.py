"""What a signal to us means, by what is done at the moment.

| while | the first | the second | the third |
|---|---|---|---|
| pre hooks run | the present one is cancelled; post hooks follow | nobody is waited for | the same |
| the command runs | it is passed on | it is passed on | the command is killed |
| post hooks run | nothing: they run to their end | the present one is cancelled | no further one is run |

Each row counts for itself: a hurried double Ctrl-C must not end a thaw that it did not speak of. While post hooks run,
signals that follow within half a second are one: a key that is held down sends thirty a second, and a terminal that is
closed sends SIGHUP twice, once by its shell.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Protocol

from agent.contract.durations import format_duration
from agent.coordinator.watch import CANCEL_SECONDS
from agent.coordinator.wrapped import Wrapped

#: What ends an operation: Ctrl-C, a polite end, a terminal that is gone, Ctrl-\.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
#: What is the command's affair, and would end us if nobody caught it.
PASSED_ON = (signal.SIGUSR1, signal.SIGUSR2)
#: A terminal sends these to everybody in its foreground: the command has them already.
_OF_TERMINALS = (signal.SIGINT, signal.SIGQUIT)
#: Who has its own use for Ctrl-C (a database's shell) must not be killed by the third in an hour.
_TOGETHER_SECONDS = 10.0
#: Nobody reads what the last signal did, and means the next one, in less.
_ONE_SECONDS = 0.5


class Cancel(Protocol):
    """`Coordinator.cancel`."""

    def __call__(self, *, within_seconds: float = CANCEL_SECONDS) -> None:
        """Cancel every run."""


class Interrupts:
    """Counts signals and acts on them. `say` tells people what a signal did, and what another would do.

    `stopped_by`: the signal that came before the command did. `asked`: one came while it ran. `cut` is set while the
    present post hook shall not be waited for; `cut_short`: that happened to one; `given_up`: no more of them shall run.
    """

    def __init__(self, cancel: Cancel, say: Callable[[str], None], grace_seconds: float) -> None:
        self._cancel = cancel
        self._say = say
        self._grace_seconds = grace_seconds
        self._command: Wrapped | None = None
        self._stage = "pre"
        self._came: list[float] = []
        self._last = float("-inf")
        self._timer: asyncio.TimerHandle | None = None
        self._killing: asyncio.Task[list[int]] | None = None
        self.stopped_by = ""
        self.asked = False
        self.cut = asyncio.Event()
        self.cut_short = False
        self.given_up = False

    def signalled(self, number: signal.Signals) -> None:
        """A signal came."""
        if number in PASSED_ON:
            if self._command is not None:
                self._command.signal(number)
            return
        now = _clock()
        same, self._last = now - self._last < _ONE_SECONDS, now
        if same and self._stage == "post" and self._came:
            return
        self._came.append(now)
        if self._stage == "pre":
            self._before(number)
        elif self._command is not None:
            self._meanwhile(self._command, number)
        else:
            self._afterwards(number)

    def _before(self, number: signal.Signals) -> None:
        self.stopped_by = self.stopped_by or number.name
        if len(self._came) == 1:
            self._say(f"{number.name}: the command is not run; what was started is stopped, and post hooks follow")
            self._cancel()
        else:
            self._say("waiting no longer for what was started; post hooks follow")
            self._cancel(within_seconds=0)

    def _meanwhile(self, command: Wrapped, number: signal.Signals) -> None:
        self.asked = True
        has_it = command.shares_terminal and number in _OF_TERMINALS
        if has_it:
            self._came = [each for each in self._came if each > self._came[-1] - _TOGETHER_SECONDS]
        if len(self._came) >= 3:
            self._say(f"{number.name} for the third time: killing the command; post hooks follow")
            self._kill(command)
        elif has_it and len(self._came) > 1:
            self._say(f"the command has this {number.name}, too; a third within {_TOGETHER_SECONDS:g} s kills it")
        elif not has_it:
            self._say(f"{number.name} is passed on to the command; post hooks follow it (a third signal kills it)")
            command.signal(number)
            if number not in _OF_TERMINALS and self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._grace_seconds, self._too_long, command)

    def _too_long(self, command: Wrapped) -> None:
        grace = format_duration(self._grace_seconds)
        self._say(f"the command did not end within {grace} (--grace): killing it; post hooks follow")
        self._kill(command)

    def _kill(self, command: Wrapped) -> None:
        if self._killing is None:
            self._killing = asyncio.create_task(command.kill(), name="kill the command")

    def _afterwards(self, number: signal.Signals) -> None:
        if len(self._came) == 1:
            self._say(
                f"{number.name}: post hooks run to their end all the same, since a database may be frozen "
                "(again: end the present one)"
            )
            return
        if len(self._came) == 2:
            self._say(f"{number.name}: ending the present post hook; those after it still run (again: none of them)")
            self._cancel()
        else:
            self._say(f"{number.name}: no further post hook is run; what was frozen may stay so")
            self.given_up = True
            self._cancel(within_seconds=0)
        self.cut_short = True
        self.cut.set()

    @contextlib.contextmanager
    def of_command(self, command: Wrapped) -> Iterator[None]:
        """While the command runs, signals are its own."""
        self._stage, self._came = "command", []
        self._command = command
        try:
            yield
        finally:
            self._command = None
            self._came = []
            if self._timer is not None:
                self._timer.cancel()

    async def settled(self) -> None:
        """Wait until a kill that was begun has done what it can."""
        if self._killing is not None:
            await self._killing

    def after_command(self) -> None:
        """Post hooks begin: signals that came before say nothing about them."""
        self._stage, self._came = "post", []

    def next_hook(self) -> None:
        """A post hook begins: that the one before it was ended says nothing about it."""
        self.cut.clear()


def _clock() -> float:
    return asyncio.get_running_loop().time()
