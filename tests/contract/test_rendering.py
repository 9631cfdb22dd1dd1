"""Templates render as Go's text/template would, or are refused by name; placeholders touch nothing else."""

from __future__ import annotations

import contextlib
import copy
import pickle
import time
from types import MappingProxyType

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent.contract.rendering import (
    MAX_DEPTH,
    MAX_OUTPUT_BYTES,
    MAX_TEXT_BYTES,
    MAX_WORK_CHARACTERS,
    RenderError,
    check,
    expand,
    fill,
    placeholders,
    render,
)

DATA: dict[str, object] = {
    "Name": "nightly",
    "Namespace": "shop",
    "Status": {"Phase": "Succeeded", "Duration": "3m", "Error": None},
    "Params": {"KEEP": "7", "EMPTY": "", "TEXT": 'say "hi"\n'},
    "Yes": True,
    "No": False,
    "Zero": 0,
    "Seven": 7,
    "Half": 0.5,
    "List": ["a", 1, None, True],
    "Words": ["a", "b"],
    "Map": {"b": 2, "a": "x"},
    "NoList": [],
    "NoMap": {},
}


# Time is tested where it is the promise; a busy machine must not fail the other properties.
unhurried = settings(deadline=None)


def rendered(text: str) -> str:
    check(text)
    return render(text, DATA)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ .Name }}", "nightly"),
        ("{{.Name}}", "nightly"),
        ("a{{ .Status.Phase }}b", "aSucceededb"),
        ("{{\n.Name\r\n}}", "nightly"),
        ("{{ .Params.KEEP }}/{{ .Namespace }}", "7/shop"),
        ("}} is text", "}} is text"),
        ('{{ "}}" }}', "}}"),
        ("{{`{{`}}", "{{"),
        ("{{ true }} {{ false }} {{ 12 }} {{ -3 }} {{-3}} {{ +3 }}", "true false 12 -3 -3 3"),
        ("{{ 0x1F }} {{ 0b101 }} {{ 0o17 }} {{ 017 }} {{ 1_000 }}", "31 5 15 15 1000"),
        ("{{ 9223372036854775807 }}", "9223372036854775807"),
    ],
)
def test_fields_and_literals_print_as_in_go(text: str, expected: str) -> None:
    assert rendered(text) == expected


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        (r'"a\tb\n\\\""', 'a\tb\n\\"'),
        (r'"\a\b\f\r\v"', "\a\b\f\r\v"),
        (r'"\u00e9\U0001F600\x41\101"', "é😀AA"),
        (r'"\xc3\xa9"', "é"),
        ('"é"', "é"),
        ('""', ""),
        (r"`a\tb`", r"a\tb"),
        ("`two\r\nlines`", "two\nlines"),
        ('`"`', '"'),
    ],
)
def test_strings_have_the_escapes_of_go(literal: str, expected: str) -> None:
    assert rendered(f"{{{{ {literal} }}}}") == expected


@pytest.mark.parametrize(
    "text",
    [
        "{{ .Nope }}",
        "{{ .Nope.Deeper.Still }}",
        "{{ .Status.Nope }}",
        "{{ .Status.Error }}",
        "{{ (.Nope).X }}",
    ],
)
def test_a_missing_field_prints_no_value_at_any_depth(text: str) -> None:
    assert rendered(text) == "<no value>"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ if .Nope.X }}a{{ else }}b{{ end }}", "b"),
        ('{{ default "d" .Nope.X }}', "d"),
        ('{{ .Nope.X | default "d" }}', "d"),
        ('{{ eq .Nope "x" }} {{ eq .Nope nil }} {{ ne .Nope "x" }}', "false true true"),
        ('{{ printf "%v" .Nope }}', "<nil>"),
        ("{{ toJson .Nope }}", "null"),
        ("[{{ quote .Nope }}]", "[]"),
        ("{{ not .Nope }}", "true"),
    ],
)
def test_a_missing_field_is_nothing_to_every_function(text: str, expected: str) -> None:
    assert rendered(text) == expected


@pytest.mark.parametrize(
    ("value", "true"),
    [
        (".Yes", True),
        (".No", False),
        (".Zero", False),
        (".Seven", True),
        (".Half", True),
        (".Name", True),
        (".Params.EMPTY", False),
        (".List", True),
        (".NoList", False),
        (".Map", True),
        (".NoMap", False),
        (".Nope", False),
        (".Status.Error", False),
        ('"false"', True),
        ('"0"', True),
        ("0", False),
        (".", True),
    ],
)
def test_truth_is_that_of_go(value: str, true: bool) -> None:
    expected = "yes" if true else "no"
    assert rendered(f"{{{{ if {value} }}}}yes{{{{ else }}}}no{{{{ end }}}}") == expected
    assert rendered(f"{{{{ with {value} }}}}yes{{{{ else }}}}no{{{{ end }}}}") == expected
    assert rendered(f"{{{{ not (not {value}) }}}}") == str(true).lower()
    assert rendered(f"{{{{ {value} | default nil | not | not }}}}") == str(true).lower()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ if eq .Status.Phase `Succeeded` }}ok{{ else }}bad{{ end }}", "ok"),
        ('{{ if eq .Status.Phase "Failed" }}ok{{ end }}', ""),
        ("{{ if .No }}a{{ else if .Yes }}b{{ else }}c{{ end }}", "b"),
        ("{{ if .No }}a{{ else if .Zero }}b{{ else }}c{{ end }}", "c"),
        ("{{ if .No }}a{{ else if .Zero }}b{{ end }}", ""),
        ("{{ if .Yes }}a{{ else if .Name.X }}b{{ end }}", "a"),
        ("{{ if .Yes }}{{ if .No }}a{{ else }}b{{ end }}c{{ end }}", "bc"),
        ("{{ with .Status }}{{ .Phase }} {{ .Name }}{{ end }}", "Succeeded <no value>"),
        ("{{ with .Nope }}x{{ else }}{{ .Name }}{{ end }}", "nightly"),
        ("{{ with .Name }}{{ . | upper }}{{ end }}{{ .Namespace }}", "NIGHTLYshop"),
        ("{{if.Yes}}a{{end}}", "a"),
    ],
)
def test_if_and_with_choose_the_branch(text: str, expected: str) -> None:
    assert rendered(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a \n {{- .Name -}} \n b", "anightlyb"),
        ("a {{- .Name }} b", "anightly b"),
        ("a {{ .Name -}}\t\r\n b", "a nightlyb"),
        ("a {{- 3 -}} b", "a3b"),
        ("a{{/* {{ .Nope }} */}}b", "ab"),
        ("a {{- /* note */ -}} b", "ab"),
        ("a {{/* two\nlines */}} b", "a  b"),
        ("{{ if .Yes -}}\n x\n{{- end }}\n", "x\n"),
        ("a\u00a0{{- .Name }}", "a\u00a0nightly"),
    ],
)
def test_trim_markers_and_comments_leave_what_go_leaves(text: str, expected: str) -> None:
    assert rendered(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ eq 1 1 }} {{ eq 1 2 }} {{ ne 1 2 }}", "true false true"),
        ('{{ eq "a" "b" "c" "a" }} {{ eq "a" "b" "c" }}', "true false"),
        ('{{ "a" | eq "b" }}', "false"),
        (
            "{{ eq .Yes true }} {{ eq .Half .Half }} {{ eq .Map nil }} {{ eq nil nil }}",
            "true true false true",
        ),
        # Go stops at the first match, so the argument of another kind behind it is never compared.
        ('{{ eq 1 1 "x" }}', "true"),
        ("{{ and .Yes .Name }} {{ and .Zero .Name }} {{ and .Name }}", "nightly 0 nightly"),
        ("{{ or .Zero .Name }} {{ or .Zero .No }} {{ or .Name .Zero }}", "nightly false nightly"),
        ("{{ and .No .Name.X }} {{ or .Yes .Name.X }}", "false true"),
        ("{{ .Name | and .Yes }} {{ .Name | or .Yes }} {{ .Zero | or .No }}", "nightly true 0"),
        ("{{ not .Yes }} {{ .No | not }}", "false true"),
        ('{{ upper "aß" }} {{ lower "ÀΣ" }} {{ upper "\\u1fb3" }} {{ lower "İ" }}', "Aß àσ \u1fbc i"),
        ('[{{ trim " \\t\\u00a0a b\\u2003\\n" }}] [{{ trim "\\x1fa" }}]', "[a b] [\x1fa]"),
        ('{{ replace "a" "bb" "banana" }} {{ .Name | replace "night" "day" }}', "bbbnbbnbb dayly"),
        ('{{ replace "" "-" "ab" }} {{ replace "a" "" "aba" }}', "-a-b- b"),
        (
            "{{ default 3 .Zero }} {{ default 3 .Seven }} {{ default 3 }} {{ .No | default .Yes }}",
            "3 7 3 true",
        ),
        (
            "{{ quote .Name }} {{ quote .Seven .Nope .Yes }} {{ .Params.TEXT | quote }}",
            '"nightly" "7" "true" "say \\"hi\\"\\n"',
        ),
        ('{{ quote "é\\u200b\\x01\\x7f😀\\\\" }}', '"é\\u200b\\x01\\x7f😀\\\\"'),
        ('{{ eq quote "" }}', "true"),
        ('{{ (.Status).Phase }} {{ ("x") | upper }} {{ upper (printf "%s" (lower "A")) }}', "Succeeded X A"),
        ('{{ .Params.KEEP | printf "%s-%s" .Name | upper | quote }}', '"NIGHTLY-7"'),
    ],
)
def test_functions_and_pipelines_follow_go_and_sprig(text: str, expected: str) -> None:
    assert rendered(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{{ printf "%s|%v|%q" .Name .Name .Name }}', 'nightly|nightly|"nightly"'),
        ('{{ printf "%d%% %v %q" .Seven .Seven 97 }}', "7% 7 'a'"),
        ('{{ printf "%q %q" 39 0x10FFFF0 }}', "'\\'' '\ufffd'"),
        ('{{ printf "%v %v %v" .Yes .Half nil }}', "true 0.5 <nil>"),
        (
            '{{ printf "%v %s %q %v" .List .Words .Words .Map }}',
            '[a 1 <nil> true] [a b] ["a" "b"] map[a:x b:2]',
        ),
        ('{{ printf "no verbs" }}', "no verbs"),
        ('{{ "%s" | printf }}x', None),
        ('{{ printf "%d" .Params.KEEP }}', None),
        ('{{ printf "%s" .Nope }}', None),
        ('{{ printf "%s" .Seven }}', None),
        ('{{ printf "%s" }}', None),
        ('{{ printf "%s" .Name .Name }}', None),
        ("{{ printf .Seven }}", None),
        ("{{ printf .Params.FORMAT }}", None),
    ],
)
def test_printf_prints_what_go_prints_and_refuses_what_go_garbles(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(RenderError):
            render(text, DATA)
    else:
        assert rendered(text) == expected


@pytest.mark.parametrize("verb", ["%5d", "%-3s", "%+v", "%#v", "%.2s", "%x", "%T", "%", "%[1]d", "%*d", "% d", "%\n"])
def test_printf_widths_flags_and_other_verbs_are_refused_by_name_before_anything_runs(verb: str) -> None:
    with pytest.raises(RenderError, match="a printf format with") as refused:
        check(f"{{{{ printf `{verb}` 1 }}}}")
    assert refused.value.column == 11
    with pytest.raises(RenderError, match="a printf format with"):
        render("{{ printf .F 1 }}", {"F": verb})


@pytest.mark.parametrize(
    ("number", "text", "json"),
    [
        (1.5, "1.5", "1.5"),
        (2.0, "2", "2"),
        (0.0, "0", "0"),
        (-0.0, "-0", "-0"),
        (100000.0, "100000", "100000"),
        (1e6, "1e+06", "1000000"),
        (123456789.0, "1.23456789e+08", "123456789"),
        (0.0001, "0.0001", "0.0001"),
        (0.00001, "1e-05", "0.00001"),
        (1e-7, "1e-07", "1e-7"),
        (1e20, "1e+20", "100000000000000000000"),
        (1e21, "1e+21", "1e+21"),
        (-1234.25, "-1234.25", "-1234.25"),
        (5e-324, "5e-324", "5e-324"),
    ],
)
def test_floats_print_as_in_go(number: float, text: str, json: str) -> None:
    assert render("{{ .N }} {{ toJson .N }}", {"N": number}) == f"{text} {json}"


@unhurried
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_printed_float_reads_back_as_itself(number: float) -> None:
    text, json = render("{{ .N }} {{ toJson .N }}", {"N": number}).split()
    assert (float(text), float(json)) == (number, number)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": [1, None, True], "a": {"x": "y"}}, '{"a":{"x":"y"},"b":[1,null,true]}'),
        ("<a & 'b'>\u2028\"\\\n\x01\x7fé", '"\\u003ca \\u0026 \'b\'\\u003e\\u2028\\"\\\\\\n\\u0001\x7fé"'),
        ((1, 2), "[1,2]"),
        ([], "[]"),
        ({}, "{}"),
    ],
)
def test_to_json_is_what_encoding_json_writes(value: object, expected: str) -> None:
    assert render("{{ toJson .V }}", {"V": value}) == expected


@pytest.mark.parametrize(
    ("text", "named", "line", "column"),
    [
        ("a\nb   {{ len .X }}", 'unknown function "len"', 2, 8),
        ("{{ range .X }}{{ end }}", 'unsupported action "range"', 1, 4),
        ('{{ define "x" }}{{ end }}', 'unsupported action "define"', 1, 4),
        ('{{ template "x" }}', 'unsupported action "template"', 1, 4),
        ('{{ block "x" . }}{{ end }}', 'unsupported action "block"', 1, 4),
        ("{{ index .X 1 }}", 'unknown function "index"', 1, 4),
        ("{{ env `HOME` }}", 'unknown function "env"', 1, 4),
        ("{{ $x }}", "a variable", 1, 4),
        ("{{ $x := .Name }}", "a variable", 1, 4),
        ("{{ $.Name }}", "a variable", 1, 4),
        ("{{ .X := 1 }}", 'unexpected ":"', 1, 7),
        ("{{ .Name.Upper 1 }}", "no function", 1, 4),
        ("{{ .Name .Name }}", "no function", 1, 4),
        ('{{ "a" "b" }}', "no function", 1, 4),
        ('{{ "a" | .Name }}', "value after |", 1, 10),
        ('{{ "a" | "b" }}', "value after |", 1, 10),
        ('{{ "a" | (upper) }}', "upper with 0 arguments, where it takes 1", 1, 11),
        ("{{ upper }}", "upper with 0 arguments", 1, 4),
        ("{{ eq upper 1 }}", "upper with 0 arguments", 1, 7),
        ('{{ upper "a" "b" }}', "upper with 2 arguments", 1, 4),
        ('{{ "a" | upper "b" }}', "upper with 2 arguments", 1, 10),
        ("{{ eq 1 }}", "eq with 1 argument, where it takes 2 or more", 1, 4),
        ("{{ ne 1 2 3 }}", "ne with 3 arguments", 1, 4),
        ("{{ nil }}", "nil as a command", 1, 4),
        ("{{ if nil }}{{ end }}", "nil as a command", 1, 7),
        ("{{}}", "a missing value", 1, 3),
        ("{{ .X | }}", "a missing value", 1, 9),
        ("{{ | upper }}", "a missing value", 1, 4),
        ("{{ () }}", "a missing value", 1, 5),
        ("{{ if }}{{ end }}", "a missing value", 1, 7),
        ("{{ .X", "an action that never ends", 1, 1),
        ("a {{", "an action that never ends", 1, 3),
        ("{{- ", "an action that never ends", 1, 1),
        ("{{-", "a number -", 1, 3),
        ("{{ (.X }}", "a parenthesis that is not closed", 1, 8),
        ("{{ .X) }}", "a ) without its (", 1, 6),
        ('{{ "a }}', "does not end on its line", 1, 4),
        ('{{ "a\nb" }}', "does not end on its line", 1, 4),
        ("{{ `a }}", "a raw string that never ends", 1, 4),
        (r'{{ "\q" }}', r"an unknown escape \q", 1, 4),
        (r'{{ "\ud800" }}', "names no character", 1, 4),
        (r'{{ "\777" }}', "names no character", 1, 4),
        (r'{{ "\xff" }}', "not UTF-8", 1, 4),
        ("{{ 1.5 }}", "not an integer", 1, 4),
        ("{{ .5 }}", "not an integer", 1, 4),
        ("{{ 12ab }}", "not an integer", 1, 4),
        ("{{ 9223372036854775808 }}", "beyond 64 bits", 1, 4),
        pytest.param("{{ " + "9" * 5000 + " }}", "not an integer", 1, 4, id="long integer"),
        ("{{ 'a' }}", "a character constant", 1, 4),
        ("{{ .Params.my-name }}", 'unexpected "-" after .my', 1, 14),
        ("{{ .A. }}", "two values without a space between", 1, 6),
        ("{{ ..A }}", "two values without a space between", 1, 5),
        ('{{ "a".B }}', "two values without a space between", 1, 7),
        ("{{ eq(.A) .B }}", '"eq" without a space', 1, 4),
        ("{{ { }}", 'unexpected "{"', 1, 4),
        ("{{ end }}", 'unexpected "end"', 1, 4),
        ("{{ else }}", 'unexpected "else"', 1, 4),
        ("\n\n {{ if .X }}", 'an unclosed "if"', 3, 5),
        ("{{ with .X }}{{ else }}", 'an unclosed "with"', 1, 4),
        ("{{ if .X }}{{ else }}{{ else }}{{ end }}", 'an "else" after the last "else"', 1, 25),
        ("{{ if .X }}{{ else }}{{ else if .Y }}{{ end }}", 'an "else" after the last "else"', 1, 25),
        ("{{ with .X }}{{ else if .Y }}{{ end }}", 'something after "else"', 1, 22),
        ("{{ if .X }}{{ end .X }}", 'something after "end"', 1, 19),
        ("{{ .X | if }}", 'unexpected "if"', 1, 9),
        ("{{/* a }}", "a comment that never ends", 1, 1),
        ("{{/* a */ .X }}", "something after a comment", 1, 10),
        ("{{ /* a */ }}", 'unexpected "/"', 1, 4),
        ("{{ .X }}\ud800", "surrogate", 1, 9),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_place(text: str, named: str, line: int, column: int) -> None:
    with pytest.raises(RenderError) as checked:
        check(text)
    error = checked.value
    assert named in error.problem
    assert (error.line, error.column) == (line, column)
    assert str(error).startswith(f"line {line}, column {column}: {error.problem} in ")
    assert error.next_step
    with pytest.raises(RenderError) as at_rendering:
        render(text, DATA)
    assert str(at_rendering.value) == str(error)


def test_the_message_has_the_place_the_expression_and_the_next_step() -> None:
    with pytest.raises(RenderError) as refused:
        check("a\nbcd {{ len .X }} tail")
    assert str(refused.value) == (
        'line 2, column 8: unknown function "len" in {{ len .X }}; supported: and, default, eq, lower, ne, '
        "not, or, printf, quote, replace, toJson, trim, upper; if, else, with, end; "
        "fields such as .Params.NAME"
    )
    assert refused.value.expression == "{{ len .X }}"


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("{{ len\n  .X }}", "{{ len .X }}"),
        ("{{ len " + "x" * 200 + " }}", "{{ len " + "x" * 73 + "..."),
        ("{{ len \x1b[31m }}", "{{ len \ufffd[31m }}"),
        ("{{ .X", "{{ .X"),
    ],
)
def test_the_expression_in_a_message_is_one_short_printable_line(text: str, expression: str) -> None:
    with pytest.raises(RenderError) as refused:
        check(text)
    assert refused.value.expression == expression


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{{ upper .Seven }}", "upper wants a string, not an integer"),
        ("{{ .Nope | upper }}", "upper wants a string, not nothing"),
        ("{{ trim .List }}", "trim wants a string, not a list"),
        ('{{ replace "a" 1 "b" }}', "replace wants a string, not an integer"),
        ('{{ eq 1 "1" }}', "a comparison of an integer with a string"),
        ("{{ eq 1 true }}", "a comparison of an integer with a boolean"),
        ("{{ ne .Half 1 }}", "a comparison of a float with an integer"),
        ("{{ eq .Map .Map }}", "a comparison of two maps"),
        ("{{ eq .List .List }}", "a comparison of two lists"),
        ("{{ .Name.First }}", "a field .First of .Name, which is a string"),
        ("{{ with .Name }}{{ .X }}{{ end }}", "a field .X of ., which is a string"),
        ("{{ .List.X }}", "a field .X of .List, which is a list"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_where_it_is_used(text: str, named: str) -> None:
    check(text)
    with pytest.raises(RenderError) as refused:
        render(text, DATA)
    assert refused.value.problem == named


@pytest.mark.parametrize("text", ["{{ upper .S }}", "{{ .S.X }}", "{{ eq .S 1 }}", "{{ toJson .S.Y }}"])
def test_a_message_never_holds_a_value_of_the_data(text: str) -> None:
    with pytest.raises(RenderError) as refused:
        render(text, {"S": ["hunter2"]})
    assert "hunter2" not in str(refused.value)


class Trap:
    """Anything but its type's name being touched fails the test."""

    def __getattribute__(self, name: str) -> object:
        if name == "__class__":
            return object.__getattribute__(self, name)
        raise AssertionError(name)

    def __str__(self) -> str:
        raise AssertionError

    __repr__ = __str__


@pytest.mark.parametrize("text", ["{{ .T }}", "{{ .T.x }}", "{{ .L }}", "{{ toJson .L }}", "{{ if .T }}{{ end }}"])
def test_objects_that_are_not_plain_data_are_refused_untouched(text: str) -> None:
    with pytest.raises(RenderError, match="the data has a Trap here"):
        render(text, {"T": Trap(), "L": [Trap()]})


@pytest.mark.parametrize("name", ["__class__", "keys", "__init__", "items"])
def test_attributes_and_methods_are_no_fields(name: str) -> None:
    assert render(f"{{{{ .{name} }}}}{{{{ .Map.{name} }}}}", {"Map": {}}) == "<no value><no value>"


@pytest.mark.parametrize(
    "value", [{1: 2}, 2**64, [2**70], -(2**63) - 1, b"x", {"a"}, pytest.param(10**5000, id="huge")]
)
def test_values_without_a_counterpart_in_go_are_refused(value: object) -> None:
    for text in ("{{ .V }}", "{{ toJson .V }}", '{{ printf "%v" .V }}', "{{ quote .V }}"):
        with pytest.raises(RenderError):
            render(text, {"V": value})


def test_any_mapping_and_tuples_count_as_plain_data() -> None:
    assert render("{{ .A.B }} {{ .C }}", MappingProxyType({"A": MappingProxyType({"B": 1}), "C": (1, 2)})) == "1 [1 2]"


# --- bounds


def test_a_template_over_its_size_is_refused_and_text_without_actions_never_is() -> None:
    check("{{ .X }}" + "x" * (MAX_TEXT_BYTES - 8))
    for text in ("{{ .X }}" + "x" * (MAX_TEXT_BYTES - 7), "{{ .X }}" + "é" * (MAX_TEXT_BYTES // 2)):
        with pytest.raises(RenderError, match=f"more than {MAX_TEXT_BYTES} bytes"):
            check(text)
    large = "x" * (MAX_TEXT_BYTES * 20)
    assert render(large, {}) is large


def test_a_result_over_its_size_is_refused() -> None:
    assert len(render("{{ .X }}", {"X": "x" * MAX_OUTPUT_BYTES})) == MAX_OUTPUT_BYTES
    for value in ("x" * (MAX_OUTPUT_BYTES + 1), "é" * (MAX_OUTPUT_BYTES // 2 + 1)):
        with pytest.raises(RenderError, match=f"a result of more than {MAX_OUTPUT_BYTES} bytes"):
            render("{{ .X }}", {"X": value})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{{ if .X }}", "{{ end }}"),
        ("{{ with .X }}", "{{ end }}"),
        ("{{ if 1 }}{{ else }}", "{{ end }}"),
    ],
)
def test_nesting_of_blocks_ends_at_its_limit(before: str, after: str) -> None:
    check(before * MAX_DEPTH + after * MAX_DEPTH)
    for depth in (MAX_DEPTH + 1, 2000):
        with pytest.raises(RenderError, match=f"nesting deeper than {MAX_DEPTH}"):
            check(before * depth + after * depth)


def test_nesting_of_parentheses_and_of_printed_values_ends_at_its_limit() -> None:
    assert render("{{ " + "(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH + " }}", {}) == "1"
    with pytest.raises(RenderError, match="nesting deeper"):
        check("{{ " + "(" * 30_000 + "1" + ")" * 30_000 + " }}")
    endless: list[object] = []
    endless.append(endless)
    for text in ("{{ .X }}", "{{ toJson .X }}"):
        with pytest.raises(RenderError, match="a value nested deeper"):
            render(text, {"X": endless})


def test_long_chains_are_not_nesting() -> None:
    assert render("{{ if .X }}" + "{{ else if .X }}" * 3000 + "{{ else }}z{{ end }}", {}) == "z"
    assert render('{{ "a"' + " | upper" * 8000 + " }}", {}) == "A"


@pytest.mark.parametrize(
    "text",
    [
        "{{ .X" + " | upper" * 8000 + " }}",
        '{{ .X | replace "" .X }}',
        '{{ .X | replace "x" .X | replace "x" .X }}',
        '{{ printf "' + "%s" * 2000 + '"' + " .X" * 2000 + " }}",
        "{{ .Bomb }}",
        "{{ toJson .Bomb }}",
        "{{ if eq .X" + " .X" * 1000 + " }}{{ end }}",
    ],
)
def test_work_is_bounded_whatever_the_template_multiplies(text: str) -> None:
    bomb: list[object] = ["x" * 100]
    for _ in range(MAX_DEPTH - 2):
        bomb = [bomb, bomb]
    started = time.perf_counter()
    with pytest.raises(RenderError, match=f"more than {MAX_WORK_CHARACTERS} characters"):
        render(text, {"X": "x" * 20_000, "Bomb": bomb})
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "text",
    [
        "{{" * (MAX_TEXT_BYTES // 2),
        '{{ "' + "\\" * (MAX_TEXT_BYTES - 10),
        '{{ "' + "a\\n" * (MAX_TEXT_BYTES // 3 - 5) + '" }}',
        "{{ .X }}" * (MAX_TEXT_BYTES // 8),
        "{{- .X -}} " * (MAX_TEXT_BYTES // 11),
        "{{/**/}}" * (MAX_TEXT_BYTES // 8),
        "{{ " + " " * (MAX_TEXT_BYTES - 6) + "}}",
        "{{ ." + "a" * (MAX_TEXT_BYTES - 7) + " }}",
        "{{ eq " + "1 " * (MAX_TEXT_BYTES // 2 - 10) + " }}",
    ],
    ids=range(9),
)
def test_the_largest_templates_take_no_more_than_a_moment(text: str) -> None:
    started = time.perf_counter()
    with contextlib.suppress(RenderError):
        render(text, {"X": 1})
    # A machine that is slow and busy needs a second; what is quadratic needs minutes.
    assert time.perf_counter() - started < 10


# --- properties

# Words of templates, in an order that hypothesis chooses; \x20 and \n are the spaces among them.
FRAGMENTS = """
{{ }} {{- -}} {{/* */}} . .X .Status if else end with eq and or printf default quote toJson replace upper trim
| ( ) " ` ' "%s" 1 0x nil true $x \\ - := é x ${A} ${ }
"""
fragments = st.sampled_from([*FRAGMENTS.split(), "{{ if .X }}", "{{ else }}", "{{ end }}", " ", "\n"])
templates = st.one_of(
    st.text(),
    st.text(st.characters(), max_size=30).map("{{{{ {} }}}}".format),
    st.lists(fragments).map("".join),
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@unhurried
@given(templates, st.dictionaries(st.sampled_from(["X", "Status", "é"]), plain))
@example("{{ .X }}", {"X": "\ud800"})
def test_no_text_and_no_data_raise_anything_but_render_error(text: str, data: dict[str, object]) -> None:
    for call in (lambda: check(text), lambda: render(text, data), lambda: expand(text, data, {"A": "a"})):
        with contextlib.suppress(RenderError):
            call()


@unhurried
@given(templates)
def test_every_refusal_has_a_place_inside_the_text_and_one_line_of_message(text: str) -> None:
    refused: RenderError | None = None
    try:
        check(text)
    except RenderError as error:
        refused = error
    if refused is not None:
        lines = text.split("\n")
        assert 1 <= refused.line <= len(lines)
        assert 1 <= refused.column <= len(lines[refused.line - 1]) + 1
        assert "\n" not in str(refused)


@unhurried
@given(st.text().filter(lambda text: "{{" not in text))
def test_text_without_actions_is_returned_by_identity(text: str) -> None:
    assert render(text, {}) is text
    check(text)


@unhurried
@given(st.text())
def test_any_string_survives_as_a_go_literal_and_as_data(text: str) -> None:
    literal = render("{{ quote .X }}", {"X": text})
    assert render(f"{{{{ {literal} }}}}", {}) == text
    assert render("{{ .X }}", {"X": text}) == text


@unhurried
@given(plain, plain)
def test_ne_is_the_inverse_of_eq(left: object, right: object) -> None:
    data = {"L": left, "R": right}
    try:
        same = render("{{ eq .L .R }}", data)
    except RenderError:
        with pytest.raises(RenderError):
            render("{{ ne .L .R }}", data)
    else:
        assert {same, render("{{ ne .L .R }}", data)} == {"true", "false"}


def test_an_error_survives_pickling_and_copying() -> None:
    with pytest.raises(RenderError) as refused:
        check("{{ len }}")
    for other in (pickle.loads(pickle.dumps(refused.value)), copy.copy(refused.value)):
        assert str(other) == str(refused.value)
        assert other.column == refused.value.column
    assert isinstance(refused.value, ValueError)


# --- placeholders

VALUES = {"A": "a", "E": "", "DB-NAME": "shop", "x.y": "dotted", "IN": "${A} {{ .X }} $A", "B": "}"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A}", "a"),
        ("pre${A}post${A}", "preaposta"),
        ("${A:=d}", "a"),
        ("${NOPE:=d}", "d"),
        ("${NOPE:=}", ""),
        ("${NOPE:=two words: $x}", "two words: $x"),
        # An empty value: the shell's := takes the default, and so do we; without a default it is empty.
        ("${E:=d}", "d"),
        ("[${E}]", "[]"),
        ("${DB-NAME} ${x.y}", "shop dotted"),
        ("${NOPE:=${A}}", "a"),
        ("${NOPE:=<${NADA:=${A}}>}", "<a>"),
        ("${A:=${NOPE}}.", "a."),
        ("${NOPE:=${NADA}}", "${NADA}"),
        ('${NOPE:={"k": 1}}', '{"k": 1}'),
        ("${X:-${A}}", "${X:-a}"),
        ("$$${A}", "$$a"),
        ("$${A} ${A}", "$${A} a"),
        ("${A}${A}", "aa"),
        ("${B}}", "}}"),
        ("{${A}}", "{a}"),
    ],
)
def test_placeholders_are_filled(text: str, expected: str) -> None:
    assert fill(text, VALUES) == expected


@pytest.mark.parametrize(
    "text",
    [
        "${NOPE}",
        "$A",
        "$A ${",
        "${A",
        "${A:-x}",
        "${A:+x}",
        "${A:?x}",
        "${A-}",
        "${A-x}",
        "${A=x}",
        "${A%x}",
        "${A##x}",
        "${A/x/y}",
        "${A:1}",
        "${#A}",
        "${!A}",
        "${A[0]}",
        "${ A }",
        "${A }",
        "${}",
        "${:=x}",
        "${1}",
        "${@}",
        "$${A}",
        "$$$${A}",
        "$(A)",
        "{A}",
        "$ {A}",
        "${A:=x",
        "${a}",
    ],
)
def test_every_other_form_of_the_shell_is_left_untouched_by_identity(text: str) -> None:
    assert fill(text, VALUES) is text


def test_a_value_is_never_read_again() -> None:
    assert fill("${IN} ${NOPE:=${IN}}", VALUES) == "${A} {{ .X }} $A ${A} {{ .X }} $A"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("nothing $A ${#A} ${A:-x} $${A}", set()),
        ("${A} ${B:=x} ${DB-NAME} ${A}", {"A", "B", "DB-NAME"}),
        ("${A:=${B:=${C}}} ${X:-${D}}", {"A", "B", "C", "D"}),
    ],
)
def test_placeholders_names_what_fill_would_look_for(text: str, names: set[str]) -> None:
    assert placeholders(text) == names


@unhurried
@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_fill_leaves_text_without_a_placeholder_as_it_is(text: str, values: dict[str, str]) -> None:
    text = text.replace("${", "")
    assert fill(text, values) is text


pieces = st.lists(st.sampled_from(["${", "}", "A", "B", ":=", ":-", "$", "-", " ", "${A}", "${B:=", "x"])).map("".join)


@unhurried
@given(pieces)
def test_fill_with_nothing_changes_only_defaults_and_reports_what_it_looks_for(text: str) -> None:
    names = placeholders(text)
    asked: set[str] = set()

    class Recorder(dict[str, str]):
        def get(self, name: str, default: object = None) -> None:  # type: ignore[override]
            asked.add(name)

        def __contains__(self, name: object) -> bool:
            asked.add(str(name))
            return False

    result = fill(text, Recorder())
    assert asked == names
    if ":=" not in text:
        assert result is text


@unhurried
@given(pieces, st.text())
def test_fill_inserts_a_value_exactly_once_for_each_place(text: str, value: str) -> None:
    marked = fill(text, {"A": "\N{SNOWMAN}", "B": "\N{SNOWMAN}"})
    if value:
        assert fill(text, {"A": value, "B": value}) == marked.replace("\N{SNOWMAN}", value)


@pytest.mark.parametrize("text", ["${A:=" * 40_000, "${A:=" * 20_000 + "}" * 20_000, "${" * 99_999, "${A:=}" * 20_000])
def test_fill_takes_linear_time(text: str) -> None:
    started = time.perf_counter()
    fill(text, {})
    placeholders(text)
    assert time.perf_counter() - started < 10


def test_filled_text_over_the_output_limit_is_refused_with_its_place() -> None:
    with pytest.raises(RenderError) as refused:
        fill("a\n ${A}${A}", {"A": "x" * (MAX_OUTPUT_BYTES // 2)})
    assert (refused.value.line, refused.value.column, refused.value.expression) == (2, 6, "${A}")
    with pytest.raises(RenderError):
        fill("${A}", {"A": "x" * (MAX_OUTPUT_BYTES + 1)})
    with pytest.raises(RenderError, match="surrogate"):
        fill("${A}", {"A": "\ud800"})


# --- both at once


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${A} {{ .Name }}", "a nightly"),
        ('{{ if eq "${A}" "a" }}${A}{{ end }}', "a"),
        ("{{ printf `%s-${A}` .Name }}", "nightly-a"),
        ("${A} only", "a only"),
        ("{{ .Name }} only", "nightly only"),
        ("${NOPE} {{ .Name }} ${NOPE:=d}", "${NOPE} nightly d"),
    ],
)
def test_expand_renders_and_fills(text: str, expected: str) -> None:
    assert expand(text, DATA, VALUES) == expected


def test_expand_reads_neither_data_nor_values_again() -> None:
    data = {"X": "${A} {{ .Y }}", "Y": "y"}
    assert expand("{{ .X }} ${IN}", data, VALUES) == "${A} {{ .Y }} ${A} {{ .X }} $A"


def test_expand_names_the_place_of_a_value_that_is_too_long() -> None:
    with pytest.raises(RenderError) as refused:
        expand("{{ .Name }}\n${A}", DATA, {"A": "x" * (MAX_OUTPUT_BYTES + 1)})
    assert refused.value.problem == f"more than {MAX_OUTPUT_BYTES} bytes of text and values"
