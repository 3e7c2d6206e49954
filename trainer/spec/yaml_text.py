"""YAML text, restricted to what JSON can hold: a spec means the same in a file, in a form and in a request."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

import yaml
from yaml.constructor import SafeConstructor
from yaml.events import CollectionStartEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import ReaderError

from trainer.spec.text import misleading

DEEPEST: Final = 50
"""Most levels of lists and mappings inside each other."""
MOST_VALUES: Final = 100_000
"""Most values of a document, counting those of an alias each time it is used."""
MOST_DIGITS: Final = 300
"""Most digits of a whole number: as many as a float can have."""
LONGEST: Final = 5_000_000
"""Longest text, in characters."""
LONGEST_SHOWN: Final = 40
"""Most characters of a value that a message repeats."""

_TAG: Final = "tag:yaml.org,2002:"
_EXPONENT: Final = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE][-+]?[0-9]+$")
_EXPONENT_STARTS: Final = list("-+0123456789")
_AMBIGUOUS: Final = re.compile(r".*:|[-+]?0[0-9_]")
"""Numbers that YAML 1.1 and 1.2 read differently: of base 60, and octal ones without an o."""
_SCALARS: Final = SafeConstructor()


class YamlError(ValueError):
    """A text cannot be read; says at which line and column, and what to do about it."""

    def __init__(self, path: Sequence[str], line: int, column: int, message: str) -> None:
        self.path = tuple(path)
        """The field in which the fault is, as far as it is known."""
        super().__init__(f"line {line}, column {column}: {message}")


class _Loader(yaml.SafeLoader):
    """Reads all of JSON's numbers (in YAML 1.1, `1e-4` is text), and refuses deep nesting before Python does."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """The next node; raises `YamlError` if it lies too deep."""
        self._depth += 1
        if self._depth > DEEPEST and self.check_event(CollectionStartEvent):
            mark: Any = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise YamlError((), mark.line + 1, mark.column + 1, _too_deep())
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def scan_to_next_token(self) -> None:
        """Skip what separates tokens; within brackets also tabs, with which many editors indent JSON."""
        super().scan_to_next_token()
        while self.flow_level and self.peek() == "\t":
            self.forward()
            super().scan_to_next_token()


class _Dumper(yaml.SafeDumper):
    """Quotes whatever `_Loader` would not read as text, and repeats shared values instead of naming them."""

    def ignore_aliases(self, data: Any) -> bool:
        """No value is written as an alias of another."""
        del data
        return True


for _each in (_Loader, _Dumper):
    _each.add_implicit_resolver(f"{_TAG}float", _EXPONENT, _EXPONENT_STARTS)


def load(text: str) -> tuple[Any, dict[str, int]]:
    """The value of a YAML or JSON text (JSON is YAML), and the line of each of its fields by dotted path, from 1.

    Raises `YamlError` for anything that JSON cannot hold, and for more than the limits above.
    """
    if len(text) > LONGEST:
        raise YamlError((), 1, 1, f"the text has {len(text)} characters: at most {LONGEST} are read")
    try:
        root = _Loader(text).get_single_node()
    except ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"U+{error.character:04X} is a control character, which YAML does not allow: remove it"
        raise YamlError((), line, column, message) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise YamlError((), line, column, f"is neither YAML nor JSON: {_described(error)}") from error
    if root is None:
        return None, {}
    reader = _Reader()
    return reader.value(root, ()), reader.lines


def dump(value: Any) -> str:
    """A value as YAML that `load` reads as the same value. Misleading characters, and then all others, are escaped."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    if misleading(text, several_lines=True):
        text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=100)
    return text


def _described(error: yaml.MarkedYAMLError) -> str:
    """What a YAML parser says, in one line."""
    if not error.context or error.context_mark is None:
        return error.problem or "it cannot be parsed"
    start = error.context_mark
    return f"{error.problem} ({error.context} that starts at line {start.line + 1}, column {start.column + 1})"


def _too_deep() -> str:
    return f"is nested too deeply: at most {DEEPEST} levels of lists and mappings are read"


class _Reader:
    """Makes JSON values of YAML's nodes. An alias becomes a copy of the value that it names."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self._count = 0
        self._open = set[int]()
        """Nodes whose values are being made: one of them inside itself would never end."""

    def value(self, node: Node, path: tuple[str, ...]) -> Any:
        self._count += 1
        if self._count > MOST_VALUES:
            _refuse(node, path, f"has more than {MOST_VALUES} values once its aliases are written out: use fewer")
        if isinstance(node, ScalarNode):
            return _scalar(node, path)
        if len(path) >= DEEPEST:
            _refuse(node, path, _too_deep())
        if id(node) in self._open:
            _refuse(node, path, "contains an alias of itself: remove the alias")
        self._open.add(id(node))
        value = self._mapping(node, path) if isinstance(node, MappingNode) else self._sequence(node, path)
        self._open.remove(id(node))
        return value

    def _sequence(self, node: Node, path: tuple[str, ...]) -> list[Any]:
        _check_tag(node, path, "seq")
        values = []
        for index, inner in enumerate(node.value):
            place = (*path, str(index))
            values.append(self.value(inner, place))
            self.lines[".".join(place)] = inner.start_mark.line + 1
        return values

    def _mapping(self, node: MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        _check_tag(node, path, "map")
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        keys = set[str]()
        for key, inner in node.value:
            name = _key(key, path)
            place = (*path, name)
            if name in keys:
                _refuse(key, place, "appears twice in the same mapping: remove one of the two")
            keys.add(name)
            if key.tag == f"{_TAG}merge":
                for source in self._merged(inner, path):
                    merged = source | merged
            else:
                own[name] = self.value(inner, place)
                self.lines[".".join(place)] = key.start_mark.line + 1
        return merged | own

    def _merged(self, node: Node, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """The mappings that `<<` adds; the first one that has a key decides its value."""
        for each in node.value if isinstance(node, SequenceNode) else [node]:
            if not isinstance(each, MappingNode):
                _refuse(each, path, "`<<` adds the fields of a mapping, or of a list of mappings: name one")
            value: dict[str, Any] = self.value(each, path)
            yield value


def _key(node: Node, path: tuple[str, ...]) -> str:
    if not isinstance(node, ScalarNode):
        _refuse(node, path, "the name of a field must be text, not a list or a mapping")
    if node.tag not in {f"{_TAG}str", f"{_TAG}merge", f"{_TAG}value"}:
        _refuse(node, path, f"the name of a field must be text: put {_shown(node)!r} in quotes")
    return _text(node, path)


def _scalar(node: ScalarNode, path: tuple[str, ...]) -> Any:
    kind = node.tag.removeprefix(_TAG)
    if kind in {"str", "value"}:
        return _text(node, path)
    if kind == "timestamp":
        _refuse(node, path, f"{node.value} is a date in YAML, and JSON has none: put it in quotes")
    if kind not in {"null", "bool", "int", "float"}:
        _check_tag(node, path, "str")
    if kind in {"int", "float"} and _AMBIGUOUS.match(node.value):
        _refuse(node, path, f"{_shown(node)} is read differently by different versions of YAML: put it in quotes")
    if kind == "int" and len(node.value) > MOST_DIGITS:
        _refuse(node, path, f"a number of {len(node.value)} digits is too long: write a smaller one")
    try:
        value = getattr(_SCALARS, f"construct_yaml_{kind}")(node)
    except (ValueError, LookupError):
        _refuse(node, path, f"{_shown(node)!r} cannot be read as {kind}: correct it, or put it in quotes")
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(node, path, f"{_shown(node)} is not a finite number, and JSON has no others: write a number")
    return value


def _shown(node: ScalarNode) -> str:
    """As much of a scalar as a message repeats."""
    text: str = node.value
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _text(node: ScalarNode, path: tuple[str, ...]) -> str:
    """A scalar's text. JSON writes characters beyond U+FFFF as two halves, which YAML's escapes leave apart."""
    text: str = node.value
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        _refuse(node, path, "contains half of a surrogate pair, which is no character: remove it")


def _check_tag(node: Node, path: tuple[str, ...], expected: str) -> None:
    if node.tag != f"{_TAG}{expected}":
        shown = node.tag.replace(_TAG, "!!")
        _refuse(node, path, f"has the type {shown}, which JSON does not have: use text, numbers, lists and mappings")


def _refuse(node: Node, path: Sequence[str], message: str) -> NoReturn:
    raise YamlError(path, node.start_mark.line + 1, node.start_mark.column + 1, message)
