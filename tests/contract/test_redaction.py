"""Redaction: every occurrence goes, whatever it is disguised as and wherever a chunk or a cut falls."""

from __future__ import annotations

import base64
import json
import shlex
import subprocess
import tracemalloc
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract.outcomes import OutputBuffer
from agent.contract.redaction import MARK, MIN_BYTES, Redactor
from agent.contract.wrapping import in_text, unwrapped

SECRET = "p'ss \"w\\r/d$&+ü"


def redact(text: bytes, *values: bytes) -> bytes:
    return Redactor(values).data(text)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        (b"the password is hunter2.", [b"hunter2"], b"the password is [redacted]."),
        (b"hunter2hunter2 hunter2", [b"hunter2"], b"[redacted][redacted] [redacted]"),
        (b"nothing", [b"hunter2"], b"nothing"),
        (b"", [b"hunter2"], b""),
        (b"abc true default", [b"abc", b"true", b"Default"], b"abc true default"),  # too short, or plain words
        (b"a longer-secret here", [b"secret", b"longer-secret"], b"a [redacted] here"),
        (b"secret longer-secret", [b"longer-secret", b"secret"], b"[redacted] [redacted]"),
        (b"abcdefghi", [b"abcdef", b"defghi"], b"[redacted]"),  # two that overlap: nothing of either stays
        (b"xxaaaaaaaxx", [b"aaaa"], b"xx[redacted]xx"),
        (b"\xff\xfeBINARY\xff", [b"\xfeBIN"], b"\xff[redacted]ARY\xff"),
        (b"value", [b"  value\n"], b"[redacted]"),
        (b"p%40ssword", [b"p@ssword"], b"[redacted]"),
        (b"p@ssword", [b"p%40ssword"], b"[redacted]"),
    ],
)
def test_redaction(text: bytes, values: list[bytes], expected: bytes) -> None:
    assert redact(text, *values) == expected


@pytest.mark.parametrize(
    "disguised",
    [
        json.dumps(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        quote(SECRET, safe="").lower(),
        shlex.quote(SECRET),
        repr(SECRET),
        repr(SECRET.encode()),
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        SECRET.replace("'", "''"),
        base64.b64encode(SECRET.encode()).decode(),
        base64.urlsafe_b64encode(SECRET.encode()).decode(),
    ],
)
def test_its_usual_disguises(disguised: str) -> None:
    said = Redactor([SECRET.encode()]).text(f"<{disguised}>")
    assert "[redacted]" in said
    for part in ("p'ss", "ss%20", "w\\r", "7373", "cCdzcyA"):
        assert part not in said


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_what_a_shell_traces(shell: str) -> None:
    for value in (SECRET, "plain-one", "it's", "tab\there", "new\nline-of-it"):
        ran = subprocess.run([shell, "-xc", ': "$S" x"$S"y'], env={"S": value}, capture_output=True, check=True)
        assert value.encode() not in ran.stderr or redact(ran.stderr, value.encode()) != ran.stderr
        assert b"[redacted]" in redact(ran.stderr, value.encode()), ran.stderr


@given(st.binary(max_size=20), st.text("abcXYZ09_", min_size=9, max_size=30), st.binary(max_size=20))
def test_base64_of_a_text_around_it(before: bytes, value: str, after: bytes) -> None:
    encoded = base64.b64encode(before + value.encode() + after)
    said = redact(encoded, value.encode())
    assert MARK in said
    left = len(said.replace(MARK, b""))
    assert left <= len(base64.b64encode(before)) + len(base64.b64encode(after)) + 4, "what is left is what stood around"


def wrapped(encoded: bytes, width: int, end: bytes) -> bytes:
    return end.join(encoded[at : at + width] for at in range(0, len(encoded), width))


HEXADECIMAL = "od -An -v -tx1 | tr -d ' '"  # as `xxd -p` prints it: in lines


@pytest.mark.parametrize("command", ["base64", "base64 -w 64", "base64 -w 7", "openssl base64", HEXADECIMAL])
def test_what_tools_print_of_a_long_text_with_a_secret_in_it(command: str) -> None:
    secret = b"correct-horse-battery-staple/" + bytes(range(33, 80))
    for before in (b"", b"y" * 50, b"xy" * 31, b"z" * 70):
        text = before + secret + b"tail" * 30
        ran = subprocess.run(["sh", "-c", command], input=text, capture_output=True, check=True)
        whole, said = ran.stdout.replace(b"\n", b""), redact(ran.stdout, secret)
        assert said.count(MARK) == 1
        front, _, behind = (each.replace(b"\n", b"") for each in said.partition(MARK))
        share = len(whole) / len(text)
        assert len(front) <= len(before) * share + 3, "its beginning is left"
        assert whole.startswith(front)
        assert whole.endswith(behind)
        assert abs(len(behind) - 120 * share) <= 4, "its end is left, or what stands behind it is gone"


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("alphabet", [base64.b64encode, base64.urlsafe_b64encode])
@given(
    before=st.binary(max_size=90),
    value=st.binary(min_size=9, max_size=200),
    after=st.binary(max_size=90),
    width=st.integers(1, 80),
    sizes=st.lists(st.integers(0, 60), max_size=20),
)
def test_base64_in_lines(alphabet, end: bytes, before: bytes, value: bytes, after: bytes, width: int, sizes: list[int]):
    text = b"begin\n\n" + wrapped(alphabet(before + value + after), width, end) + end + end + b"after it"
    redactor = Redactor([value])
    if not redactor:
        return
    said = redactor.data(text)
    assert MARK in said
    left = said.replace(MARK, b"").replace(end, b"")
    around = len(base64.b64encode(before)) + len(base64.b64encode(after)) + 4
    assert len(left) <= len(b"begin\n\nafter it") + around, "what is left is what stood around"
    stream, pieces, at = redactor.stream(), b"", 0
    for size in sizes:
        stream._search_at_bytes = stream._held_bytes + 1  # as soon as it can
        pieces += stream.write(text[at : at + size])
        at += size
    assert pieces + stream.write(text[at:]) + stream.end() == said, "it hangs on how it came"


@pytest.mark.parametrize(
    "coded", [base64.b64encode(b"correcthorsebattery")[:25], b"correcthorsebattery".hex().encode()]
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_for_each_character_that_comes_byte_by_byte(end: bytes, coded: bytes) -> None:
    """The longest that a hit can be: as much has to be held back."""
    stream, said = Redactor([b"correcthorsebattery"]).stream(), b""
    stream._search_at_bytes = stream._held_bytes + 1
    for byte in b"<" + wrapped(coded, 1, end) + b">" * 200:
        said += stream.write(bytes([byte]))
    assert said + stream.end() == b"<[redacted]" + b">" * 200


def test_an_empty_line_parts_what_stands_around_it() -> None:
    core = base64.b64encode(b"correct-horse-battery")
    for gap in (b"\n\n", b"\r\n\r\n", b"\n" * 7, b" \n", b"\n ", b"\r"):
        text = core[:10] + gap + core[10:]
        assert redact(text, b"correct-horse-battery") == text
    for gap in (b"", b"\n", b"\r\n"):
        assert redact(b"<" + core[:10] + gap + core[10:] + b">", b"correct-horse-battery") == b"<[redacted]>"


def test_plain_words_on_two_lines_are_none() -> None:
    assert redact(b"correct-\nhorse", b"correct-horse") == b"correct-\nhorse"


@given(kept=st.integers(0, 22), width=st.integers(1, 30))
def test_of_base64_in_lines_that_was_cut_the_beginning_goes_too(kept: int, width: int) -> None:
    cut = wrapped(base64.b64encode(b"correct-horse-bat")[:kept], width, b"\n")
    said = Redactor([b"correct-horse-bat"]).data(b"see:\n" + cut, cut=True)
    assert said == b"see:\n" + (cut if kept < MIN_BYTES else MARK)


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"A", b"ab", b"\0"]), max_size=30))
def test_where_a_piece_of_the_unwrapped_text_stands(parts: list[bytes]) -> None:
    text = b"".join(parts)
    flat = unwrapped(text)
    for at, byte in enumerate(flat):
        if byte == 0:
            continue  # it stands for an empty line, or for itself
        [(begin, end)] = in_text(text, [(at, at + 1)])
        assert text[begin:end] == bytes([byte])
    letters = [(at, at + 1) for at, byte in enumerate(flat) if byte]
    assert [text[begin:end] for begin, end in in_text(text, letters)] == [bytes([byte]) for byte in flat if byte]


def test_each_line_of_a_key() -> None:
    key = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
    said = Redactor([key.encode()]).text("key: hkiG9w0BAQEFAASC, and before MIIEvQIBADANBgkq")
    assert said == "key: [redacted], and before [redacted]"


VALUES = st.lists(st.binary(min_size=MIN_BYTES, max_size=12), min_size=1, max_size=4)


@given(VALUES, st.lists(st.one_of(st.binary(max_size=9), st.integers(0, 3)), max_size=12), st.lists(st.integers(0, 30)))
def test_chunks_change_nothing_and_no_value_stays(
    values: list[bytes], parts: list[bytes | int], sizes: list[int]
) -> None:
    text = b"".join(part if isinstance(part, bytes) else values[part % len(values)] for part in parts)
    redactor = Redactor(values)
    whole = redactor.data(text)
    stream, said, at = redactor.stream(), b"", 0
    for size in sizes:
        said += stream.write(text[at : at + size])
        at += size
    said += stream.write(text[at:]) + stream.end()
    assert said == whole
    for value in values:
        known = redactor.patterns.plain  # plain words are not among them
        assert value not in known or all(value not in piece for piece in whole.split(MARK))


@given(st.integers(0, 11), st.integers(0, 20))
def test_of_a_stream_that_was_cut_the_beginning_of_a_secret_goes_too(kept: int, before: int) -> None:
    value = b"correct-hors"
    said = Redactor([value]).data(b"x" * before + value[:kept], cut=True)
    assert said == b"x" * before + (MARK if kept >= MIN_BYTES else value[:kept])
    assert Redactor([value]).data(b"x" + value[:kept]) == b"x" + value[:kept], "it ended by itself: nothing was begun"


@given(st.integers(1, 12), st.integers(0, 20), st.booleans())
def test_of_a_stream_that_began_before_the_end_of_a_secret_goes_too(gone: int, after: int, shorter: bool) -> None:
    value = b"correct-hors"
    rest = value[gone:]
    redactor = Redactor([value, b"rect"] if shorter else [value])  # another secret may stand within the first
    said = redactor.data(rest + b"x" * after, begun=True)
    assert said == (b"" if len(rest) >= MIN_BYTES else rest) + b"x" * after
    assert redactor.data(value + b"x", begun=True) == MARK + b"x", "a whole one is one"
    if not shorter:
        assert redactor.data(rest + b"x") == rest + b"x", "nothing stood before it"


@given(st.integers(0, 300))
def test_a_secret_on_the_cut_of_what_is_kept_leaves_no_part_behind(before: int) -> None:
    value = b"correct-horse-battery-staple"
    stream, buffer = Redactor([value]).stream(), OutputBuffer(128)
    for byte in b"." * before + value + b"." * 300:
        buffer.write(stream.write(bytes([byte])))
    buffer.write(stream.end())
    text = buffer.captured().text
    assert not any(value[at : at + 4].decode() in text for at in range(len(value) - 3))


def test_a_text_that_is_no_utf_8_comes_through() -> None:
    half = "half \ud800 pair"
    assert Redactor([b"secret"]).text(half) == half
    assert Redactor().text(half) == half
    assert "secret" not in Redactor([b"secret"]).text(f"{half} secret")


def test_it_does_not_tell_what_it_knows() -> None:
    assert "hunter2" not in repr(Redactor([b"hunter2"]))


def test_a_container_that_prints_one_letter_for_ever_costs_no_memory():
    """Values of one letter hit everywhere, and each hit overlaps the next: a stretch is one, however long."""
    stream = Redactor([b"a" * size for size in range(4, 34)]).stream()
    patterns = len(stream._patterns.plain) + len(stream._patterns.coded)
    assert patterns > 30
    stream._buffer += b"a" * 64 * 1024
    assert len(stream._spans()) <= patterns
    assert Redactor([b"a" * 4, b"a" * 9]).data(b"x" + b"a" * 100_000 + b"y") == b"x[redacted]y"


def test_hits_that_touch_but_do_not_overlap_are_marked_each():
    assert Redactor([b"abcd"]).data(b"abcdabcd") == b"[redacted][redacted]"


K = 1024
ZEROS = [b"\0" * size for size in range(4, 34)]  # their base64 is AAAA, of any length
LETTERS = [b"a" * size for size in range(4, 34)]
LARGE = [bytes(range(256)) * 128]
HOSTILE = {
    "one letter": (LETTERS, b"a" * 32 * K),
    "more of it than is read at once": (LETTERS, b"a" * 256 * K),
    "base64 of zeros": (ZEROS, b"A" * 256 * K),
    "base64 of zeros in lines": (ZEROS, (b"A" * 76 + b"\n") * (256 * K // 77)),
    "a line for each character": (ZEROS, b"A\n" * (128 * K)),
    "a line for each character, as DOS has them": (ZEROS, b"A\r\n" * (85 * K)),
    "lines": (ZEROS, b"\n" * 256 * K),
    "a secret a line": ([b"correct-horse"], (base64.b64encode(b"correct-horse") + b"\n") * (256 * K // 21)),
    "a large one, in lines": (LARGE, base64.encodebytes(LARGE[0]) * 6),
    "a large one that is not it": ([b"a" * 32 * K + b"b"], b"a" * 256 * K),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_printed_takes_little_memory(name: str) -> None:
    """Once output of one letter cost 300 MB: each hit was kept, and overlapped the next."""
    values, text = HOSTILE[name]
    redactor = Redactor(values)
    assert redactor.patterns.plain  # made once
    tracemalloc.start()
    try:
        stream = redactor.stream()
        for at in range(0, len(text), 64 * K):
            stream.write(text[at : at + 64 * K])
        stream.end(cut=True)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2 * K * K, f"{peak_bytes / K / K:.1f} MB"


def test_what_comes_byte_by_byte_is_not_searched_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, searched = Redactor(LARGE).stream(), []
    search = stream._spans
    monkeypatch.setattr(stream, "_spans", lambda: searched.append(len(stream._buffer)) or search())
    for _ in range(4):
        for _ in range(64 * K):
            stream.write(b"x")
    assert sum(searched) < 4 * 4 * 64 * K, "each byte a few times"
