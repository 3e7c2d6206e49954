"""What the tags of a version say."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from trainer.protocol import names


def metrics_of(tags: Mapping[str, str]) -> dict[str, float]:
    """Evaluation results in a version's tags, by metric key; values that are not finite numbers are left out."""
    prefix = names.TAG_METRIC
    values = {key.removeprefix(prefix): finite(text) for key, text in tags.items() if key.startswith(prefix)}
    return {key: value for key, value in values.items() if value is not None}


def finite(text: str | None) -> float | None:
    """The finite number that a tag says, if it says one."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def formats_of(tags: Mapping[str, str]) -> list[str]:
    """The formats that a version's tags name; none for old versions, which have no tag for them."""
    return [name for name in tags.get(names.TAG_FORMATS, "").split(",") if name]


def classes_of(tags: Mapping[str, str]) -> list[str]:
    """The names of a classifier's classes; none where a tag has no room for them."""
    try:
        found = json.loads(tags.get(names.TAG_CLASSES, "[]"))
    except ValueError:  # anybody who can reach MLflow can write a tag
        return []
    return [str(name) for name in found] if isinstance(found, list) else []


def own_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """A version's tags in MLflow without the copies of its labels and of what evaluations have found."""
    return {key: value for key, value in tags.items() if not key.startswith((names.TAG_LABEL, names.TAG_EVALUATED))}
