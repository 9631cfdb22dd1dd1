"""Tokens into a tree, by the grammar of Go's text/template.

Function names, argument counts and literal printf formats are checked here, earlier than Go does, so that a
template can be refused before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from .errors import Place, RenderError, Source, UnfitError
from .functions import FUNCTIONS, SUPPORTED, check_format
from .lexer import Kind, Token, tokens
from .limits import MAX_DEPTH, MAX_TEXT_BYTES
from .syntax import Call, Expression, If, Literal, Node, Output, Path, Pipeline, Template, Text, With

_CONSTANTS: dict[str, bool | None] = {"true": True, "false": False, "nil": None}
_GRAMMAR = ("if", "else", "with", "end")
_KEYWORDS_OF_GO = ("block", "break", "continue", "define", "range", "template")
_ENDS_A_COMMAND = (Kind.PIPE, Kind.CLOSE, Kind.RIGHT)


def parse(text: str) -> Template:
    """Parse a template.

    Raises:
        RenderError: it is larger than MAX_TEXT_BYTES, not UTF-8, nested deeper than MAX_DEPTH, or has
            something that is not supported; the first such thing is named.
    """
    source = Source(text)
    begin = max(text.find("{{"), 0)
    size = len(text)
    if size <= MAX_TEXT_BYTES:
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            place = Place(error.start, error.start)
            raise source.error("half of a surrogate pair", place, "give text that is valid Unicode") from None
    if size > MAX_TEXT_BYTES:
        raise source.error(
            f"a template of more than {MAX_TEXT_BYTES} bytes",
            Place(begin, begin),
            "shorten it, or keep the large part in a file beside the command",
        )
    return Template(source, _Parser(source).template())


class _Parser:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._tokens = tokens(source)
        self._next = next(self._tokens)
        self._depth = 0

    # --- tokens

    def _take(self) -> Token:
        token = self._next
        if token.kind is not Kind.END:
            self._next = next(self._tokens)
        return token

    def _skip_space(self) -> Token:
        while self._next.kind is Kind.SPACE:
            self._take()
        return self._next

    def _error(self, problem: str, place: Place, next_step: str) -> RenderError:
        return self._source.error(problem, place, next_step)

    def _deeper(self, place: Place) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"nesting deeper than {MAX_DEPTH}", place, "nest fewer blocks and parentheses")

    # --- blocks

    def template(self) -> tuple[Node, ...]:
        nodes, stop = self._nodes()
        if stop.kind is not Kind.END:
            step = "it belongs to an if or with; add one before it"
            raise self._error(f'an unexpected "{stop.value}"', stop.place, step)
        return nodes

    def _nodes(self) -> tuple[tuple[Node, ...], Token]:
        """Read up to the ``else``, ``end`` or end of text that closes this list; return that token too."""
        nodes: list[Node] = []
        while True:
            token = self._take()
            if token.kind is Kind.TEXT:
                nodes.append(Text(str(token.value), token.place))
                continue
            if token.kind is Kind.END:
                return tuple(nodes), token
            word = self._skip_space()
            if word.kind is Kind.WORD and word.value in ("else", "end"):
                return tuple(nodes), self._take()
            if word.kind is Kind.WORD and word.value in ("if", "with"):
                nodes.append(self._block(self._take()))
            else:
                nodes.append(Output(self._pipeline(word.place), word.place))

    def _block(self, opener: Token) -> Node:
        self._deeper(opener.place)
        condition = self._pipeline(opener.place)
        body, stop = self._nodes()
        branches = [(condition, body)]
        otherwise: tuple[Node, ...] = ()
        while stop.kind is Kind.WORD and stop.value == "else":
            following = self._skip_space()
            if opener.value == "if" and following.kind is Kind.WORD and following.value == "if":
                condition = self._pipeline(self._take().place)
                body, stop = self._nodes()
                branches.append((condition, body))
                continue
            self._close(stop)
            otherwise, stop = self._nodes()
            if stop.kind is Kind.WORD and stop.value == "else":
                step = "remove one, or write else if before it"
                raise self._error('an "else" after the last "else"', stop.place, step)
        if stop.kind is Kind.END:
            raise self._error(f'an unclosed "{opener.value}"', opener.place, "close it with {{ end }}")
        self._close(stop)
        self._depth -= 1
        if opener.value == "if":
            return If(tuple(branches), otherwise)
        return With(*branches[0], otherwise)

    def _close(self, word: Token) -> None:
        token = self._skip_space()
        if token.kind is not Kind.CLOSE:
            step = "only an if has {{ else if ... }}; otherwise write {{ else }} or {{ end }}"
            raise self._error(f'something after "{word.value}"', token.place, step)
        self._take()

    # --- expressions

    def _pipeline(self, place: Place) -> Pipeline:
        """Read up to and with the token that closes it; the lexer sees to it that it is the right one."""
        first = self._command(in_pipe=False)
        rest: list[Call] = []
        while self._take().kind is Kind.PIPE:
            stage_place = self._skip_space().place
            stage = self._command(in_pipe=True)
            if not isinstance(stage, Call):
                step = "only a function can take the value before it"
                raise self._error("a value after |", stage_place, step)
            rest.append(stage)
        return Pipeline(first, tuple(rest), place)

    def _command(self, *, in_pipe: bool) -> Expression:
        start = self._skip_space()
        if start.kind in _ENDS_A_COMMAND:
            raise self._error("a missing value", start.place, "write a field, a string or a function")
        operands: list[Expression] = []
        while self._skip_space().kind not in _ENDS_A_COMMAND:
            operands.append(self._operand())
            if self._next.kind is not Kind.SPACE and self._next.kind not in _ENDS_A_COMMAND:
                step = "put a space before it"
                raise self._error("two values without a space between", self._next.place, step)
        first, arguments = operands[0], operands[1:]
        for argument in arguments:
            if isinstance(argument, Call):
                # As an argument a function stands without arguments of its own, which few can.
                self._call(argument, (), in_pipe=False)
        if start.kind is Kind.WORD and isinstance(first, Call):
            return self._call(first, arguments, in_pipe=in_pipe)
        if arguments:
            raise self._error("arguments to something that is no function", start.place, SUPPORTED)
        if isinstance(first, Literal) and first.value is None:
            raise self._error("nil as a command", start.place, "nil can only be an argument, as in eq .X nil")
        return first

    def _call(self, call: Call, arguments: Sequence[Expression], *, in_pipe: bool) -> Call:
        function = FUNCTIONS[call.name]
        given = len(arguments) + in_pipe
        if given < function.least or (function.most is not None and given > function.most):
            limit = f"{function.least}" if function.least == function.most else f"{function.least} or more"
            problem = f"{call.name} with {given} argument{'' if given == 1 else 's'}, where it takes {limit}"
            raise self._error(problem, call.place, f"write {function.usage}")
        if call.name == "printf" and arguments and isinstance(arguments[0], Literal):
            self._check_format(arguments[0])
        return Call(call.name, tuple(arguments), call.place)

    def _check_format(self, literal: Literal) -> None:
        if isinstance(literal.value, str):
            try:
                check_format(literal.value)
            except UnfitError as unfit:
                raise self._source.error(unfit.problem, literal.place, unfit.next_step) from unfit

    def _operand(self) -> Expression:
        token = self._take()
        if token.kind is Kind.FIELD:
            return Path(None, (str(token.value), *self._fields()), token.place)
        if token.kind is Kind.LEFT:
            self._deeper(token.place)
            inner = self._pipeline(token.place)
            self._depth -= 1
            names = self._fields()
            return Path(inner, names, token.place) if names else inner
        if token.kind is Kind.WORD:
            return self._word(token)
        if token.kind in (Kind.STRING, Kind.INTEGER):
            return Literal(token.value, token.place)
        # Nothing else can begin an operand: the lexer refuses what is no token of ours.
        return Path(None, (), token.place)

    def _fields(self) -> tuple[str, ...]:
        names = []
        while self._next.kind is Kind.FIELD:
            names.append(str(self._take().value))
        return tuple(names)

    def _word(self, token: Token) -> Expression:
        name = str(token.value)
        if name in _CONSTANTS:
            return Literal(_CONSTANTS[name], token.place)
        if name in FUNCTIONS:
            if self._next.kind in (Kind.SPACE, *_ENDS_A_COMMAND):
                return Call(name, (), token.place)
            step = f"write {FUNCTIONS[name].usage}"
            raise self._error(f'"{name}" without a space after it', token.place, step)
        if name in _GRAMMAR:
            step = f"{name} stands first, as in {{{{ {name} }}}}"
            raise self._error(f'an unexpected "{name}"', token.place, step)
        what = "unsupported action" if name in _KEYWORDS_OF_GO else "unknown function"
        raise self._error(f'{what} "{name}"', token.place, SUPPORTED)
