"""Secrets go out of what is said: every occurrence of a known value becomes `[redacted]`, also across chunks and cuts.

Redaction happens on the bytes as they come, before anything of them is thrown away, so that no cut can leave the half
of a secret behind. Besides the value itself its usual disguises are looked for (`forms`). Pure.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import quote, quote_plus, unquote_to_bytes

from agent.contract.wrapping import Span, in_text, longest, unwrapped

MARK = b"[redacted]"
#: Shorter values are not looked for: they stand in every text, and hiding them would tell what they are.
MIN_BYTES = 4
#: What a variable with a secret's name says when it has none. They are not looked for.
PLAIN = frozenset(
    (b"true", b"false", b"none", b"null", b"auto", b"default", b"disabled", b"enabled", b"required", b"optional")
)
#: Tools print a value of several lines (a PEM key) line by line; shorter lines are not looked for.
_MIN_LINE_BYTES = 8
#: Of a value with more lines, the longest are looked for one by one: each costs a search of all that is printed.
_MAX_LINES = 256
#: A stream is searched when so much of it has come that was not.
_SEARCH_AT_LEAST_BYTES = 4096
#: Of base64 that stands in the middle of other base64; less would be found everywhere.
_MIN_BASE64 = 6


def forms(value: bytes) -> set[bytes]:
    """A value, and how it looks in JSON, in a URL, quoted by a shell or for SQL."""
    text = value.decode("utf-8", "surrogateescape")
    found = {value, unquote_to_bytes(value)}
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\t", "\\t")
    spelt = [
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        json.dumps(text)[1:-1].replace("/", "\\/"),
        text.replace("'", "'\\''"),  # bash, and its `set -x`
        text.replace("'", "'\"'\"'"),  # dash, and Python's shlex
        escaped,  # $'...'
        "".join(f"\\{c}" if c in '"$`\\' else c for c in text),  # within "..."
        "".join(c if c.isalnum() or c in "_-./:=@%+," else f"\\{c}" for c in text),  # printf %q
        text.replace("'", "''"),  # SQL
        repr(text)[1:-1],
        repr(value)[2:-1],
    ]
    found |= {each.encode("utf-8", "surrogateescape") for each in spelt if not _lone(each)}
    for percent in (quote(value, safe=""), quote(value, safe="/"), quote_plus(value)):
        found |= {percent.encode(), _lower_percent(percent).encode()}
    return {each for each in found if len(each) >= MIN_BYTES}


def encoded(value: bytes) -> set[bytes]:
    """A value in hexadecimal, and in base64 of any text that has it: wherever it begins there, in both alphabets."""
    cores = {core for shift in range(3) if len(core := _base64_core(value, shift)) >= _MIN_BASE64}
    cores |= {core.replace(b"+", b"-").replace(b"/", b"_") for core in cores}
    return cores | {value.hex().encode(), value.hex().upper().encode()}


def lines(value: bytes) -> set[bytes]:
    """The lines of a value of several, and a value without the white space around it."""
    stripped = [each.strip() for each in value.splitlines()]
    if len(stripped) == 1:
        return {stripped[0]} if len(stripped[0]) >= MIN_BYTES else set()
    long = {each for each in stripped if len(each) >= _MIN_LINE_BYTES and not each.startswith(b"-----")}
    return set(sorted(long, key=len, reverse=True)[:_MAX_LINES])


def _lone(text: str) -> bool:
    """Whether it has half a surrogate pair that stands for no byte (PEP 383)."""
    return any(0xD800 <= ord(c) <= 0xDFFF and not 0xDC80 <= ord(c) <= 0xDCFF for c in text)


def _lower_percent(text: str) -> str:
    first, *rest = text.split("%")
    return "%".join([first, *(part[:2].lower() + part[2:] for part in rest)])


def _base64_core(value: bytes, shift: int) -> bytes:
    """The characters of base64 that depend on the value alone when `shift` bytes (mod 3) stand before it."""
    encoded = base64.b64encode(b"\0" * shift + value)
    begin = (shift * 8 + 5) // 6  # the first character without a bit of what stands before
    end = (shift + len(value)) * 8 // 6  # the last whole one; what follows would change the next
    return encoded[begin:end]


@dataclass(frozen=True, slots=True)
class Patterns:
    """What is looked for, the longest first: `plain` as it stands, `coded` also where it was wrapped into lines."""

    plain: tuple[bytes, ...] = ()
    coded: tuple[bytes, ...] = ()

    @property
    def longest_bytes(self) -> int:
        """How long a hit can be."""
        plain, coded = (len(each[0]) if each else 0 for each in (self.plain, self.coded))
        return max(plain, longest(coded))


def _sorted(patterns: set[bytes]) -> tuple[bytes, ...]:
    return tuple(sorted(patterns, key=lambda each: (-len(each), each)))


class Redactor:
    """Knows some secrets, and takes them out of bytes and texts. Values that are too short or plain are left out."""

    def __init__(self, values: Iterable[bytes] = ()) -> None:
        self._values = frozenset(
            value for value in values if len(value) >= MIN_BYTES and value.strip().lower() not in PLAIN
        )
        self._patterns: Patterns | None = None

    def __bool__(self) -> bool:
        return bool(self._values)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._values)} values>"

    def with_(self, values: Iterable[bytes]) -> Redactor:
        """One that knows these too."""
        return Redactor([*self._values, *values])

    @property
    def patterns(self) -> Patterns:
        """Everything that is looked for."""
        if self._patterns is None:
            plain: set[bytes] = set()
            coded: set[bytes] = set()
            for value in self._values:
                plain |= forms(value) | lines(value)
                coded |= encoded(value)
            self._patterns = Patterns(_sorted(plain), _sorted(coded))
        return self._patterns

    def stream(self) -> RedactedStream:
        """A new stream to redact."""
        return RedactedStream(self.patterns)

    def data(self, data: bytes, *, cut: bool = False, begun: bool = False) -> bytes:
        """`data` without the secrets. `cut`: it was longer, so the beginning of a secret at its end goes as well.

        `begun`: there was more before it, so the end of a secret at its beginning goes, too.
        """
        if begun:
            data = data[self._rest(data) :]
        stream = self.stream()
        return stream.write(data) + stream.end(cut=cut)

    def _rest(self, data: bytes) -> int:
        """How many bytes at its beginning are the end of a secret whose beginning is missing; whole ones are found."""
        rest = 0
        for pattern in (*self.patterns.plain, *self.patterns.coded):
            at = pattern.find(data[:MIN_BYTES], 1)
            while 0 < at <= len(pattern) - MIN_BYTES:
                if data.startswith(pattern[at:]):
                    rest = max(rest, len(pattern) - at)
                    break
                at = pattern.find(data[:MIN_BYTES], at + 1)
        return rest

    def text(self, text: str) -> str:
        """A text without the secrets."""
        if not self._values:
            return text
        encoded = text.encode("utf-8", "surrogatepass")
        redacted = self.data(encoded)
        return text if redacted == encoded else redacted.decode("utf-8", "replace")


class RedactedStream:
    """Redacts bytes as they come. It holds back what may be the beginning of a secret: less than the longest has.

    As much again is let come before it is searched, or a command that writes byte by byte would have all that is held
    back searched for each.
    """

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns
        self._held_bytes = max(0, patterns.longest_bytes - 1)
        self._search_at_bytes = self._held_bytes + max(self._held_bytes, _SEARCH_AT_LEAST_BYTES)
        self._buffer = bytearray()
        self._covered = 0  # so much at the buffer's beginning belongs to a secret that is told of already

    def write(self, data: bytes) -> bytes:
        """Take more; returns what may be shown by now."""
        if not self._patterns.plain:
            return data
        self._buffer += data
        if len(self._buffer) < self._search_at_bytes:
            return b""
        return self._take(len(self._buffer) - self._held_bytes, self._spans())

    def end(self, *, cut: bool = False) -> bytes:
        """The rest. `cut`: the stream went on, so the beginning of a secret at its end goes as well."""
        spans = self._spans()
        if cut:
            spans += self._begun()
        return self._take(len(self._buffer), spans)

    def _spans(self) -> list[Span]:
        """Where secrets stand in the buffer; those of two patterns may overlap."""
        return self._searched(_stretches)

    def _begun(self) -> list[Span]:
        """The beginnings of secrets with which the buffer ends."""
        return self._searched(_beginnings)

    def _searched(self, search: Callable[[bytes | bytearray, tuple[bytes, ...]], list[Span]]) -> list[Span]:
        """What a search finds in the buffer, and of base64 and hexadecimal also across its line breaks."""
        flat = unwrapped(self._buffer)
        found = search(flat, self._patterns.coded)
        if flat is not self._buffer:
            found = in_text(self._buffer, found)
        return found + search(self._buffer, self._patterns.plain)

    def _take(self, upto: int, spans: list[Span]) -> bytes:
        """Let go of the first `upto` bytes, with a mark for each stretch that secrets cover."""
        out, at = bytearray(), min(self._covered, upto)
        covered = self._covered
        for begin, end in sorted(spans):
            if begin >= upto:
                break
            if begin >= covered:
                out += self._buffer[at:begin] + MARK
            covered = max(covered, end)
            at = min(covered, upto)
        out += self._buffer[at:upto]
        del self._buffer[:upto]
        self._covered = max(0, covered - upto)
        return bytes(out)


def _stretches(text: bytes | bytearray, patterns: tuple[bytes, ...]) -> list[Span]:
    """Where patterns stand.

    Hits of one pattern that overlap are one stretch: `aaaa` among a million of `a` is one, not a million.
    """
    found = []
    for pattern in patterns:
        size = len(pattern)
        at = text.find(pattern)
        while at >= 0:
            last = at
            while (further := text.rfind(pattern, last + 1, last + 2 * size - 1)) >= 0:
                last = further
            found.append((at, last + size))
            at = text.find(pattern, last + size)
    return found


def _beginnings(text: bytes | bytearray, patterns: tuple[bytes, ...]) -> list[Span]:
    """The beginnings of patterns, of MIN_BYTES and more, with which a text ends."""
    found = []
    end = len(text)
    for pattern in patterns:
        at = text.find(pattern[:MIN_BYTES], max(0, end - len(pattern) + 1))
        while at >= 0:
            if pattern.startswith(text[at:]):
                found.append((at, end))
                break
            at = text.find(pattern[:MIN_BYTES], at + 1)
    return found
