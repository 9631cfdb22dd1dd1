"""What each signal does, by what is done at the moment and how many came."""

from __future__ import annotations

import asyncio
import itertools
import signal

import pytest

from agent.coordinator.interrupts import Interrupts

INT, TERM, HUP, QUIT, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1


class Command:
    """Stands where `Wrapped` does."""

    def __init__(self, *, shares_terminal=False):
        self.shares_terminal = shares_terminal
        self.got = []

    def signal(self, number):
        self.got.append(number.name)

    async def kill(self):
        self.got.append("kill")
        return []


class World:
    def __init__(self, grace_seconds=1000.0):
        self.cancelled, self.said = [], []
        self.interrupts = Interrupts(self.cancel, self.said.append, grace_seconds)

    def cancel(self, *, within_seconds=10.0):
        self.cancelled.append(within_seconds)


@pytest.mark.parametrize(
    ("signals", "cancelled", "by"),
    [([INT], [10.0], "SIGINT"), ([TERM, INT, HUP], [10.0, 0, 0], "SIGTERM"), ([USR1], [], "")],
)
async def test_before_the_command(signals, cancelled, by):
    world = World()
    for number in signals:
        world.interrupts.signalled(number)
    assert (world.cancelled, world.interrupts.stopped_by) == (cancelled, by)
    assert not world.interrupts.given_up


@pytest.mark.parametrize(
    ("terminal", "signals", "got"),
    [
        (False, [INT], ["SIGINT"]),
        (False, [TERM], ["SIGTERM"]),
        (False, [USR1], ["SIGUSR1"]),
        (False, [INT, INT], ["SIGINT", "SIGINT"]),
        (False, [INT, TERM, HUP], ["SIGINT", "SIGTERM", "kill"]),
        (False, [TERM, TERM, TERM, TERM], ["SIGTERM", "SIGTERM", "kill"]),
        (True, [INT], []),  # the terminal has sent it to the command already
        (True, [QUIT], []),
        (True, [TERM], ["SIGTERM"]),  # and this was not the terminal
        (True, [INT, INT], []),
        (True, [INT, INT, INT], ["kill"]),
    ],
)
async def test_while_the_command_runs(terminal, signals, got):
    world, command = World(), Command(shares_terminal=terminal)
    with world.interrupts.of_command(command):
        for number in signals:
            world.interrupts.signalled(number)
        await world.interrupts.settled()
    assert (command.got, world.cancelled) == (got, [])
    assert world.interrupts.asked is (signals != [USR1])
    assert world.interrupts.stopped_by == ""


async def test_on_a_terminal_interrupts_count_together_only_if_they_come_together(monkeypatch):
    """In a database's shell Ctrl-C ends a query; three in an hour must not kill the shell."""
    world, command = World(), Command(shares_terminal=True)
    times = iter([100.0, 200.0, 300.0, 305.0, 309.0])
    monkeypatch.setattr("agent.coordinator.interrupts._clock", lambda: next(times))
    with world.interrupts.of_command(command):
        for _ in range(3):
            world.interrupts.signalled(INT)
        assert world.said == []
        world.interrupts.signalled(INT)
        assert "a third within 10 s kills it" in world.said[-1]
        world.interrupts.signalled(INT)
        await world.interrupts.settled()
    assert command.got == ["kill"]


async def test_after_its_grace_a_command_is_killed_and_without_sigterm_there_is_none():
    for number, got in ((TERM, ["SIGTERM", "kill"]), (HUP, ["SIGHUP", "kill"]), (INT, ["SIGINT"])):
        world, command = World(grace_seconds=0), Command()
        with world.interrupts.of_command(command):
            world.interrupts.signalled(number)
            for _ in range(3):  # what is due now comes in the next turns of the loop
                await asyncio.sleep(0)
            await world.interrupts.settled()
        assert command.got == got


@pytest.mark.parametrize(
    ("signals", "cancelled", "cut", "given_up"),
    [([TERM], [], False, False), ([TERM, INT], [10.0], True, False), ([INT, INT, INT], [10.0, 0], True, True)],
)
async def test_while_post_hooks_run(signals, cancelled, cut, given_up, monkeypatch):
    world = World()
    times = itertools.count(100.0)
    monkeypatch.setattr("agent.coordinator.interrupts._clock", lambda: next(times))
    world.interrupts.signalled(INT)  # what came before says nothing about them
    world.cancelled.clear()
    world.interrupts.after_command()
    for number in signals:
        world.interrupts.signalled(number)
    assert (world.cancelled, world.interrupts.cut.is_set(), world.interrupts.given_up) == (cancelled, cut, given_up)
    world.interrupts.next_hook()
    assert not world.interrupts.cut.is_set()


async def test_a_key_that_is_held_down_ends_no_thaw(monkeypatch):
    """It began in the command, and goes on for three seconds of the thaw: one signal, and the first ends nothing."""
    world, command = World(), Command(shares_terminal=True)
    times = itertools.count(0, 1 / 30)
    monkeypatch.setattr("agent.coordinator.interrupts._clock", lambda: next(times))
    with world.interrupts.of_command(command):
        world.interrupts.signalled(INT)
    world.interrupts.after_command()
    for _ in range(90):
        world.interrupts.signalled(INT)
    assert (world.cancelled, world.interrupts.given_up) == ([], False)
    assert len(world.said) == 1
