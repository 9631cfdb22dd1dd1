"""Inputs: any bytes, and valid documents with something wrong in them - as bytes, or as what they say."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

#: What readers of JSON, YAML, JWS and templates stumble over.
WORDS = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b" ", b"\t", b"\0", b"\xff", b"\xc3\x28", b"\xef\xbb\xbf", b"."),
    *(
        b"null",
        b"true",
        b"1e999",
        b"-0",
        b"NaN",
        b"0x_",
        b"9" * 5000,
        b'"\\ud800"',
        b"\\u0000",
        b"[" * 200,
        b'{"a":' * 200,
    ),
    *(b"- ", b"? ", b"&a ", b"*a", b"!!map ", b"! ", b"<<: ", b"---\n", b"|", b">", b"%YAML 9\n", b"~", b"on", b"#"),
    *(b"{{", b"}}", b"${A}", b"$${", b"=", b"==", b"-_", b"+/", b"..", b"eyJ", b"\xe2\x80\xa8", b"\xf0\x9f\x98\x80"),
)
ANY_BYTES = st.binary(max_size=400) | st.lists(st.sampled_from(WORDS), max_size=20).map(b"".join)

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "Pod", "pod", "a=b", "${a}", "1", "0s", "a\0", "\ud800", "../x", "-x", 10**400, -(2**63)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def damaged(draw: Callable[[Any], Any], texts: Sequence[bytes]) -> bytes:
    """One of these texts after up to four accidents: cut, inserted, repeated, overwritten, or mixed with another."""
    text: bytes = draw(st.sampled_from(texts))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 40)))
        match draw(st.integers(0, 4)):
            case 0:
                text = text[:start] + text[end:]
            case 1:
                text = text[:start] + draw(st.sampled_from(WORDS) | st.binary(max_size=4)) + text[start:]
            case 2:
                text = text[:end] + text[start:end] * draw(st.integers(1, 3)) + text[end:]
            case 3:
                text = text[:start] + draw(st.binary(min_size=1, max_size=1)) + text[start + 1 :]
            case _:
                other = draw(st.sampled_from(texts))
                text = text[:start] + other[draw(st.integers(0, len(other))) :]
    return text


@st.composite
def altered(draw: Callable[[Any], Any], documents: Sequence[Any], values: st.SearchStrategy[Any] = VALUES) -> Any:
    """One of these documents with up to three places that hold something else, are gone, or have a neighbour."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        places = [place for place in _places(document) if place]
        if not places:
            break
        *path, last = draw(st.sampled_from(places))
        parent = document
        for step in path:
            parent = parent[step]
        match draw(st.integers(0, 3)):
            case 0:
                del parent[last]
            case 1 if isinstance(parent, dict):
                parent[
                    draw(st.text(max_size=8) | st.sampled_from(["from", "exec", "valueFrom", "$ref", "__class__"]))
                ] = parent[last]
            case _:
                parent[last] = draw(values)
    return document


def _places(node: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    for key, inner in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from _places(inner, (*above, key))


def as_json(document: Any) -> bytes:
    """JSON, in which half a surrogate pair and numbers that are none can be written."""
    return json.dumps(document).encode()
