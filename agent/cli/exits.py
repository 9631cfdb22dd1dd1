"""Exit codes, and how errors become them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import NoReturn

import typer

from agent.contract.errors import (
    BadInput,
    BrokerRefused,
    ClusterError,
    InvalidHook,
    InvalidPolicy,
    LinkDown,
    PodhookError,
    PublishRefused,
)


class Exit(IntEnum):
    """What `podhook` says to the shell."""

    SUCCEEDED = 0
    FAILED = 1
    USAGE = 2
    NO_TARGETS = 3
    BROKER = 4
    RUNNING = 5
    INTERRUPTED = 130


def fail(code: Exit, message: str) -> NoReturn:
    """Say why on standard error and end."""
    tell(message)
    raise typer.Exit(code)


def tell(message: str) -> None:
    """Say something on standard error, if somebody is there to read it: its end must not end what is told about."""
    with suppress(OSError):
        print(drawable(f"podhook: {message}"), file=sys.stderr, flush=True)


def drawable(text: str) -> str:
    """What may be drawn on a terminal: names and messages come from clusters and agents, and may try to steer it."""
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def logs_for_people() -> None:
    """Send what the library logs to standard error, and only what is wrong: standard output is the result's."""
    from agent.sidecar.logs import configure_logging

    configure_logging("console", "warning")


@contextmanager
def errors_as_exits() -> Iterator[None]:
    """Turn podhook's own errors into a sentence and an exit code."""
    try:
        yield
    except InvalidHook as error:
        lines = "\n".join(f"  {problem}" for problem in error.problems)
        fail(Exit.USAGE, f"the hook cannot be used:\n{lines}")
    except InvalidPolicy as error:
        lines = "\n".join(f"  {problem}" for problem in error.problems)
        fail(Exit.USAGE, f"the policy cannot be used:\n{lines}")
    except BadInput as error:
        fail(Exit.USAGE, str(error))
    except (LinkDown, BrokerRefused, PublishRefused, ClusterError) as error:
        fail(Exit.BROKER, str(error))
    except PodhookError as error:
        fail(Exit.FAILED, str(error))
    except KeyboardInterrupt:
        fail(Exit.INTERRUPTED, "interrupted")
