"""YAML as hooks need it: plain values, every key once, and `10:30` stays the text that was written.

KubeStash's files reach it through Go's YAML, so what Go reads as text is text here: PyYAML alone would take
`10:30` for 630, `2001-12-14` for a date, a plain `=` for an error and `on:` for the key `True`.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from agent.contract.errors import Problem

MAX_FILE_BYTES = 1024 * 1024
#: Python's own limit for reading and printing decimal integers is 4300; nothing in a hook is near this.
_MAX_NUMBER_CHARACTERS = 100

_TAG = "tag:yaml.org,2002:"
_TEXT = _TAG + "str"

#: Where KubeStash's objects have lists that a HookPlan takes as they stand.
_HAVE_LISTS = {"BackupConfiguration": "spec.sessions[].hooks", "RestoreSession": "spec.hooks"}


def paste_hint(kind: object) -> str:
    """What to do with one of KubeStash's objects that has hooks in it; or nothing."""
    place = _HAVE_LISTS.get(kind) if isinstance(kind, str) else None
    return f"; paste the lists below its {place} into a HookPlan (kind: HookPlan)" if place else ""


class _Refused(yaml.MarkedYAMLError):
    """YAML that is right, and that a hook may not use."""

    def __init__(self, reason: str, mark: Any) -> None:
        super().__init__(problem=reason, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    """Reads documents one by one; a key that stands twice goes into `problems` and reading goes on."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.problems: list[Problem] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                reason = "a list or a mapping stands here as a key; put text that begins with [ or { in quotes"
                raise _Refused(reason, key.start_mark)
            key.tag = _TEXT  # as Kubernetes reads keys; also switches merging (<<) off
            if key.value in seen:
                place = f"line {key.start_mark.line + 1}"
                self.problems.append(Problem(place, f"{shown(key.value)} stands here a second time; keep one"))
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):  # aliases let 1 KiB grow to gigabytes
            reason = "YAML aliases (*name) are not accepted; write the value out"
            raise _Refused(reason, event.start_mark)
        tag = getattr(event, "tag", None)
        if tag is not None and not (isinstance(event, yaml.ScalarEvent) and tag in ("!", _TEXT)):
            reason = f"the YAML tag {shown(tag)} is not accepted; write the value without it"
            raise _Refused(reason, event.start_mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _MAX_NUMBER_CHARACTERS:
            reason = f"the number has {len(node.value)} characters; put it in quotes if it is text"
            raise _Refused(reason, node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_constructor(_TAG + "int", _Loader.construct_yaml_int)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (_TAG + "null", _TAG + "bool")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.1's numbers without those to base 60.
_Loader.add_implicit_resolver(
    _TAG + "int",
    re.compile(r"[-+]?(0b_*[01][01_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|0[0-7_]*|[1-9][0-9_]*)\Z"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z"
    ),
    list("-+0123456789."),
)


def read_documents(text: str | bytes) -> tuple[list[Any], list[Problem]]:
    """Read every document that is not empty, and what is wrong with the text itself.

    Where the YAML breaks, the documents before that place are returned.
    """
    size = len(text) if isinstance(text, bytes) else len(text.encode(errors="replace"))
    if size > MAX_FILE_BYTES:
        return [], [Problem("", f"the file has {size} bytes; the limit is {MAX_FILE_BYTES}; split it")]
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            return [], [Problem("", f"the file is not UTF-8 text: {error.reason} at byte {error.start}")]
    documents: list[Any] = []
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        problems = loader.problems
        while loader.check_data():  # type: ignore[no-untyped-call]
            document = loader.get_data()
            if document is not None:
                documents.append(document)
    except yaml.YAMLError as error:
        problems.append(_broken(error))
    except RecursionError:
        problems.append(Problem("", "not YAML that a hook could be: nested too deeply"))
    return documents, problems


def _broken(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    reason = getattr(error, "problem", None) or " ".join(str(error).split())
    return Problem(place, reason if isinstance(error, _Refused) else f"not YAML: {reason}")


def shown(value: object) -> str:
    """Write a value for a message: as Python does, at most 80 characters of it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
