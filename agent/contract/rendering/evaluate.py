"""A parsed template and data into text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .errors import Place, RenderError, UnfitError
from .functions import FUNCTIONS
from .limits import MAX_OUTPUT_BYTES, Meter
from .placeholders import substitute
from .printing import printed
from .syntax import Call, Expression, If, Literal, Node, Output, Path, Pipeline, Template, Text
from .values import article, kind, truth

_NOTHING = "<no value>"


def evaluate(template: Template, data: Mapping[str, object], values: Mapping[str, str] | None = None) -> str:
    """Render a template; with ``values``, fill the placeholders of its own text and strings on the way.

    Raises:
        RenderError: a value does not fit where it is used, or a limit is passed.
    """
    run = _Run(template, values)
    run.nodes(template.nodes, data)
    return run.text()


class _Run:
    def __init__(self, template: Template, values: Mapping[str, str] | None) -> None:
        self._source = template.source
        self._values = values
        self._meter = Meter()
        self._pieces: list[str] = []
        self._size_bytes = 0

    def text(self) -> str:
        return "".join(self._pieces)

    def nodes(self, nodes: Sequence[Node], dot: object) -> None:
        for node in nodes:
            if isinstance(node, Text):
                self._print(self._filled(node.value, node.place), node.place)
            elif isinstance(node, Output):
                self._print(self._printed(self._pipeline(node.pipeline, dot), node.place), node.place)
            elif isinstance(node, If):
                # any stops at the first true condition, whose body has then been rendered.
                if not any(self._branch(condition, body, dot) for condition, body in node.branches):
                    self.nodes(node.otherwise, dot)
            else:
                value = self._pipeline(node.pipeline, dot)
                if truth(value):
                    self.nodes(node.body, value)
                else:
                    self.nodes(node.otherwise, dot)

    def _branch(self, condition: Pipeline, body: Sequence[Node], dot: object) -> bool:
        if not truth(self._pipeline(condition, dot)):
            return False
        self.nodes(body, dot)
        return True

    def _pipeline(self, pipeline: Pipeline, dot: object) -> object:
        value = self._value(pipeline.first, dot)
        for call in pipeline.rest:
            value = self._call(call, dot, (value,))
        return value

    def _value(self, expression: Expression, dot: object) -> object:
        if isinstance(expression, Literal):
            value = expression.value
            return self._filled(value, expression.place) if isinstance(value, str) else value
        if isinstance(expression, Path):
            return self._path(expression, dot)
        if isinstance(expression, Call):
            return self._call(expression, dot, ())
        return self._pipeline(expression, dot)

    def _path(self, path: Path, dot: object) -> object:
        value = dot if path.base is None else self._pipeline(path.base, dot)
        walked = "."
        for name in path.names:
            if value is None:
                # Go: a field of a missing field is missing as well.
                return None
            if not isinstance(value, Mapping):
                problem = f"a field .{name} of {walked}, which is {article(kind(value))}"
                raise self._error(problem, path.place, "end it there")
            value = value.get(name)
            walked = f"{walked.rstrip('.')}.{name}"
            try:
                kind(value)
            except UnfitError as unfit:
                raise self._error(unfit.problem, path.place, unfit.next_step) from unfit
        return value

    def _call(self, call: Call, dot: object, piped: tuple[object, ...]) -> object:
        if call.name in ("and", "or"):
            return self._first_decisive(call, dot, piped)
        arguments = [*(self._value(argument, dot) for argument in call.arguments), *piped]
        try:
            self._meter.spend(sum(len(value) for value in arguments if isinstance(value, str)))
            return FUNCTIONS[call.name].apply(arguments, self._meter)
        except UnfitError as unfit:
            raise self._error(unfit.problem, call.place, unfit.next_step) from unfit

    def _first_decisive(self, call: Call, dot: object, piped: tuple[object, ...]) -> object:
        """Return the first false (``and``) or true (``or``) argument, else the last."""
        value: object = None
        for argument in call.arguments:
            value = self._value(argument, dot)
            if truth(value) == (call.name == "or"):
                return value
        return piped[0] if piped else value

    def _filled(self, text: str, place: Place) -> str:
        if self._values is None:
            return text
        try:
            return substitute(text, self._values)
        except UnfitError as unfit:
            raise self._error(unfit.problem, place, unfit.next_step) from unfit

    def _printed(self, value: object, place: Place) -> str:
        if isinstance(value, str):
            return value
        if value is None:
            return _NOTHING
        try:
            return printed(value, "v", self._meter)
        except UnfitError as unfit:
            raise self._error(unfit.problem, place, unfit.next_step) from unfit

    def _print(self, piece: str, place: Place) -> None:
        self._size_bytes += len(piece)
        if self._size_bytes <= MAX_OUTPUT_BYTES:
            try:
                self._size_bytes += len(piece.encode()) - len(piece)
            except UnicodeEncodeError:
                step = "give text that is valid Unicode"
                raise self._error("a value with half of a surrogate pair", place, step) from None
        if self._size_bytes > MAX_OUTPUT_BYTES:
            raise self._error(f"a result of more than {MAX_OUTPUT_BYTES} bytes", place, "use shorter values")
        self._pieces.append(piece)

    def _error(self, problem: str, place: Place, next_step: str) -> RenderError:
        return self._source.error(problem, place, next_step)
