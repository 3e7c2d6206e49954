"""Columns of labels and of images: which one is taken, and what its values mean."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainer.data.labels import UNLABELLED, UNUSABLE, Labels
from trainer.data.notices import Notice
from trainer.errors import DataError

IMAGE_COLUMNS: Final = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_COLUMNS: Final = (
    "label", "labels", "fine_label", "class", "cls", "target", "category", "class_name", "label_name", "class_id",
)  # fmt: skip
"""Common names of columns of labels, the likeliest first."""


class Unusable(ValueError):
    """A column cannot be used for labels, with the reason."""


def label_column(columns: Collection[str], wanted: str | None) -> str | None:
    """The column of labels, which the spec names, or else the first with a common name; None if there is none."""
    candidates = (wanted,) if wanted else LABEL_COLUMNS
    return next((column for column in candidates if column in columns), None)


def labels_of_values(values: Sequence[Any], source: str) -> tuple[Labels, list[Notice]]:
    """Labels of texts, numbers or truth values, as text files hold them; None and empty texts are no label.

    Raises `Unusable` for other values.
    """
    texts = [None if value in (None, "") or value != value else _text(value) for value in values]  # noqa: PLR0124 - not-a-number
    return labels_of_column(pa.chunked_array([pa.array(texts, pa.string())]), source)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float):
        raise Unusable(f"it holds {value:g}, which is not a whole number")
    if isinstance(value, (list, dict)):
        raise Unusable(f"it holds {str(value)[:60]}; names or whole numbers are needed")
    return str(value)


def unusable_labels(count: int, column: str, error: Unusable, *, required: bool) -> tuple[Labels, list[Notice]]:
    """No labels and a notice, where a column cannot be used; raises `DataError` if the spec names it."""
    if required:
        raise DataError(f"dataset.label_column: {column!r} cannot be used: {error}") from error
    text = f"{column} looks like labels and is not used: {error}. Name another one in dataset.label_column"
    return Labels.none(count), [Notice(UNUSABLE, text)]


def labels_of_column(column: pa.ChunkedArray, source: str, names: Sequence[str] = ()) -> tuple[Labels, list[Notice]]:
    """Labels of a column of names, whole numbers or truth values; null and negative numbers are no label.

    ``names`` are those of the classes 0, 1 …, if they are known. Raises `Unusable` for another type of column.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
        column = column.cast(kind)
    if pa.types.is_null(kind):
        return Labels.none(len(column)), []
    if pa.types.is_boolean(kind):
        column = pc.if_else(column, "true", "false")
    elif pa.types.is_floating(kind):
        column = _whole(column)
    elif not (pa.types.is_integer(kind) or _is_text(kind)):
        raise Unusable(f"its type is {kind}; names or whole numbers are needed")
    if _is_text(column.type):
        texts = column.cast(pa.string())
        numbers = _numbers(texts)
        if numbers is None:
            return Labels.from_names(texts.to_pylist(), source), []
        column = numbers
    values = pc.fill_null(column.cast(pa.int64(), safe=False), UNLABELLED).to_numpy()
    negative = int((values < 0).sum()) - int(column.null_count)
    labels = Labels.from_numbers(values, source, names)
    if not negative:
        return labels, []
    text = f"{negative} of {len(values)} images have a negative label in {source}, which is taken for none"
    return labels, [Notice("negative_labels", text)]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floats as integers, where not-a-number is null; raises `Unusable` if one is not whole."""
    values = pc.if_else(pc.is_nan(column.cast(pa.float64())), None, column.cast(pa.float64()))
    fractional = pc.filter(values, pc.not_equal(pc.floor(values), values))
    if len(fractional):
        raise Unusable(f"it holds {fractional[0].as_py():g}, which is not a whole number")
    if (np.abs(pc.drop_null(values).to_numpy()) >= 2**62).any():
        raise Unusable("it holds numbers beyond 2**62")
    return values.cast(pa.int64())


def _numbers(texts: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Texts as integers if each of them is one, as in `.cls` members."""
    present = pc.drop_null(texts)
    if not len(present) or not pc.all(pc.match_substring_regex(present, r"^-?[0-9]{1,18}$")).as_py():
        return None
    return texts.cast(pa.int64())
