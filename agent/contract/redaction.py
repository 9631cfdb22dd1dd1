"""Secrets go out of what is said: every occurrence of a known value becomes `[redacted]`, also across chunks and cuts.

Redaction happens on the bytes as they come, before anything of them is thrown away, so that no cut can leave the half
of a secret behind. Besides the value itself its usual disguises are looked for (`forms`). Pure.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from urllib.parse import quote, quote_plus, unquote_to_bytes

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
#: Of base64 that stands in the middle of other base64; less would be found everywhere.
_MIN_BASE64 = 6


def forms(value: bytes) -> set[bytes]:
    """A value, and how it looks in JSON, in a URL, quoted by a shell or for SQL, in base64 and in hexadecimal.

    Base64 is found at all three places where a value may begin in a longer text, in one line, in both alphabets.
    """
    text = value.decode("utf-8", "surrogateescape")
    found = {value, unquote_to_bytes(value), value.hex().encode(), value.hex().upper().encode()}
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
    for shift in range(3):
        core = _base64_core(value, shift)
        if len(core) >= _MIN_BASE64:
            found |= {core, core.replace(b"+", b"-").replace(b"/", b"_")}
    return {each for each in found if len(each) >= MIN_BYTES}


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


class Redactor:
    """Knows some secrets, and takes them out of bytes and texts. Values that are too short or plain are left out."""

    def __init__(self, values: Iterable[bytes] = ()) -> None:
        self._values = frozenset(
            value for value in values if len(value) >= MIN_BYTES and value.strip().lower() not in PLAIN
        )
        self._patterns: tuple[bytes, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self._values)

    def __repr__(self) -> str:
        return f"<Redactor of {len(self._values)} values>"

    def with_(self, values: Iterable[bytes]) -> Redactor:
        """One that knows these too."""
        return Redactor([*self._values, *values])

    @property
    def patterns(self) -> tuple[bytes, ...]:
        """Everything that is looked for, the longest first."""
        if self._patterns is None:
            found: set[bytes] = set()
            for value in self._values:
                found |= forms(value) | lines(value)
            self._patterns = tuple(sorted(found, key=lambda each: (-len(each), each)))
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
        longest = 0
        for pattern in self.patterns:
            at = pattern.find(data[:MIN_BYTES], 1)
            while 0 < at <= len(pattern) - MIN_BYTES:
                if data.startswith(pattern[at:]):
                    longest = max(longest, len(pattern) - at)
                    break
                at = pattern.find(data[:MIN_BYTES], at + 1)
        return longest

    def text(self, text: str) -> str:
        """A text without the secrets."""
        if not self._values:
            return text
        encoded = text.encode("utf-8", "surrogatepass")
        redacted = self.data(encoded)
        return text if redacted == encoded else redacted.decode("utf-8", "replace")


class RedactedStream:
    """Redacts bytes as they come. It holds back what may be the beginning of a secret: less than the longest has."""

    def __init__(self, patterns: tuple[bytes, ...]) -> None:
        self._patterns = patterns
        self._held_bytes = len(patterns[0]) - 1 if patterns else 0
        self._buffer = bytearray()
        self._covered = 0  # so much at the buffer's beginning belongs to a secret that is told of already

    def write(self, data: bytes) -> bytes:
        """Take more; returns what may be shown by now."""
        if not self._patterns:
            return data
        self._buffer += data
        return self._take(len(self._buffer) - self._held_bytes, self._spans())

    def end(self, *, cut: bool = False) -> bytes:
        """The rest. `cut`: the stream went on, so the beginning of a secret at its end goes as well."""
        spans = self._spans()
        if cut:
            spans += self._begun()
        return self._take(len(self._buffer), spans)

    def _spans(self) -> list[tuple[int, int]]:
        """Where secrets stand in the buffer; those of two patterns may overlap.

        Hits of one pattern that overlap are one stretch: `aaaa` among a million of `a` is one, not a million.
        """
        found, buffer = [], self._buffer
        for pattern in self._patterns:
            size = len(pattern)
            at = buffer.find(pattern)
            while at >= 0:
                last = at
                while (further := buffer.rfind(pattern, last + 1, last + 2 * size - 1)) >= 0:
                    last = further
                found.append((at, last + size))
                at = buffer.find(pattern, last + size)
        return found

    def _begun(self) -> list[tuple[int, int]]:
        """The beginnings of secrets with which the buffer ends."""
        found = []
        end = len(self._buffer)
        for pattern in self._patterns:
            at = self._buffer.find(pattern[:MIN_BYTES], max(0, end - len(pattern) + 1))
            while at >= 0:
                if pattern.startswith(self._buffer[at:]):
                    found.append((at, end))
                    break
                at = self._buffer.find(pattern[:MIN_BYTES], at + 1)
        return found

    def _take(self, upto: int, spans: list[tuple[int, int]]) -> bytes:
        """Let go of the first `upto` bytes, with a mark for each stretch that secrets cover."""
        if upto <= 0:
            return b""
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
