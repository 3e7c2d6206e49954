"""A spec as the parameters of a run or a model in MLflow: flat names and texts, by which its pages compare runs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

LENGTH: Final = 6000
"""MLflow's limit on the characters of a value."""
AT_ONCE: Final = 100
"""MLflow's limit on the parameters of one request."""
NAME: Final = re.compile(r"[\w.]+")
"""Of a field. MLflow refuses some names with a slash, such as that of a label may be."""
CUT: Final = " … (cut)"


def parameters(spec: Mapping[str, Any]) -> dict[str, str]:
    """Every field of a spec's JSON form by its dotted path, for example ``optimization.base_lr``: ``0.00015``.

    Texts stay as they are; other values are JSON, as are labels with names that no field could have. A value that is
    too long for MLflow is cut, and says so.
    """
    return dict(_fields(spec, ""))


def _fields(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and (value or not path) and all(map(NAME.fullmatch, value)):
        for name, part in value.items():
            yield from _fields(part, f"{path}.{name}" if path else name)
        return
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    yield path, text if len(text) <= LENGTH else text[: LENGTH - len(CUT)] + CUT


def requests(wanted: Mapping[str, str], present: Mapping[str, str]) -> Iterator[list[tuple[str, str]]]:
    """The parameters that are not ``present`` yet, as many at once as MLflow takes: it refuses to change one."""
    missing = [(name, text) for name, text in wanted.items() if name not in present]
    return (missing[first : first + AT_ONCE] for first in range(0, len(missing), AT_ONCE))
