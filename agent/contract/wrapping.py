"""Base64 and hexadecimal in lines: found as if it were one line, and told where it stands in the text.

Tools break them after 76 characters (`base64`, MIME), 64 (PEM) or 60 (`xxd -p`), or wherever they are told, with LF or
CRLF. One break between two characters does not part them here; an empty line does, so that a hit of n characters is
never longer than 3n - 2 and a stream knows how much it has to hold back. Pure; memory is a few copies of the text,
whatever it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

Span = tuple[int, int]


def longest(characters: int) -> int:
    """How many bytes so many characters have at most, with a CRLF after each but the last."""
    return max(0, 3 * characters - 2)


def unwrapped(text: bytes | bytearray) -> bytes | bytearray:
    """The text without single line breaks; of several in a row, each two become a NUL. Itself if it has none."""
    if b"\n" not in text:
        return text
    return text.replace(b"\r\n", b"\n").replace(b"\n\n", b"\0").replace(b"\n", b"")


def in_text(text: bytes | bytearray, spans: Iterable[Span]) -> list[Span]:
    """Where spans of `unwrapped(text)` stand in the text: in order, and those that overlap as one."""
    found = []
    pieces = _pieces(text)
    piece = next(pieces)
    for begin, end in merged(spans):
        while begin >= piece[1]:
            piece = next(pieces)
        first = begin + piece[2]
        while end - 1 >= piece[1]:
            piece = next(pieces)
        found.append((first, end + piece[2]))
    return found


def merged(spans: Iterable[Span]) -> list[Span]:
    """Spans in order; those that overlap become one, those that only touch do not."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin < found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _pieces(text: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """What stands between line breaks: (begin, end) in the unwrapped text, and how much further on in the text."""
    at, out = 0, 0
    while True:
        stop = text.find(b"\n", at)
        last = stop < 0
        if last:
            stop = len(text)
        elif stop > at and text[stop - 1] == 0x0D:
            stop -= 1
        yield out, out + stop - at, at - out
        if last:
            return
        out += stop - at
        at, breaks = stop, 0
        while text.startswith((b"\n", b"\r\n"), at):
            at += 1 if text[at] == 0x0A else 2
            breaks += 1
        out += breaks // 2
