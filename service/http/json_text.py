"""JSON documents, read as strictly as specs are: no field twice, no NaN, no bottomless nesting."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from trainer.spec.yaml_text import DEEPEST, MOST_DIGITS


def read(body: bytes) -> Any:
    """The value in a body. Raises `json.JSONDecodeError`, which says what is wrong, and `UnicodeDecodeError`."""
    text = body.decode(json.detect_encoding(body), "surrogatepass").removeprefix("\ufeff")
    try:
        value = json.loads(
            text, object_pairs_hook=_fields, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_whole
        )
    except json.JSONDecodeError as error:
        message = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise json.JSONDecodeError(message, text, error.pos) from error
    except _Refused as error:
        raise json.JSONDecodeError(str(error), text, 0) from error
    except RecursionError as error:
        raise json.JSONDecodeError(_too_deep(), text, 0) from error
    if _depth_exceeds(value, DEEPEST):
        raise json.JSONDecodeError(_too_deep(), text, 0)
    return value


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A spec's values by dotted path, such as `method.teacher.momentum`."""
    values: dict[str, Any] = {}
    for name, value in document.items():
        path = f"{prefix}{name}"
        values |= flat(value, f"{path}.") if isinstance(value, Mapping) and value else {path: value}
    return values


class _Refused(Exception):
    """JSON allows it, or Python does, but no request may have it."""


def _too_deep() -> str:
    return f"it is nested too deeply: at most {DEEPEST} levels of lists and objects are read"


def _fields(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:  # in linear time: anybody may send a body, before the token is checked
        if name in fields:
            raise _Refused(f"the field {name[:200]!r} appears twice in the same object: remove one of the two")
        fields[name] = value
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not a JSON value: write a finite number, or null")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _Refused(f"{text[:40]} is beyond the range of numbers: write a smaller one")
    return number


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise _Refused(f"a number of {len(text)} digits is too long: write a smaller one")
    return int(text)


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Whether more than ``limit`` lists and objects lie inside each other."""
    level = [value]
    for _ in range(limit + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return False
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return True
