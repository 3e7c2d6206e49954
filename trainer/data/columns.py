"""Columns of labels and of images: which one is taken, and what its values mean."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.labels import UNLABELLED, UNUSABLE, Labels
from trainer.data.notices import Notice
from trainer.errors import DataError

IMAGE_COLUMNS: Final = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_COLUMNS: Final = (
    "label", "labels", "fine_label", "class", "cls", "target", "category", "class_name", "label_name", "class_id",
)  # fmt: skip
"""Common names of columns of labels, the likeliest first."""
NOT_A_NUMBER: Final = frozenset({"nan", "NaN"})
"""Texts that pandas and numpy write for a missing value of any column."""
MISSING_NUMBERS: Final = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "null", "none"})
"""Texts, in lower case, of a missing value in a column of numbers; elsewhere they may be names of classes."""
_WHOLE_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0+)?")
"""A number without leading zeros, which identifiers and codes have; pandas writes `1.0` in a column with holes."""
_DOUBTS: Final = {
    "negative_labels": "have a negative label in {source}, which is taken for none",
    "missing_labels": "have the label {example!r} in {source}, or another missing value, which is taken for none",
    "unnamed_labels": "have a class number in {source} that their file has no name for, such as {example}: the digits "
    "are the name",
}
"""What notices about values say, by their code."""


class Unusable(ValueError):
    """A column cannot be used for labels, with the reason."""


class LabelColumn(NamedTuple):
    """A column of labels as one file holds it."""

    values: Sequence[Any]
    """Texts, numbers, truth values or None."""
    rows: NDArray[np.int64]
    """(n,): index of each image's label in `values`; -1 for an image without a label."""
    class_names: tuple[str, ...] = ()
    """Of the classes 0, 1 …, if the file has them."""

    @classmethod
    def none(cls, count: int) -> Self:
        """For images without labels."""
        return cls([], np.full(count, UNLABELLED, dtype=np.int64))


class _Class(NamedTuple):
    """What a value of a column of labels means."""

    name: str | int | None
    """The name of the class, or its number if it has no name; None for no label."""
    doubt: str | None = None
    """Code of the notice that it needs."""


def label_column(columns: Sequence[str], wanted: str | None) -> str | None:
    """The column of labels, which the spec names, or else the first with a common name; None if there is none.

    Raises `DataError` if several columns have its name.
    """
    candidates = (wanted,) if wanted else LABEL_COLUMNS
    column = next((column for column in candidates if column in columns), None)
    if column is not None:
        check_single(columns, column)
    return column


def check_single(columns: Sequence[str], column: str) -> None:
    """Raise `DataError` if several columns have the same name."""
    if columns.count(column) > 1:
        raise DataError(f"it has {columns.count(column)} columns named {column!r}: rename or remove all but one")


def shared_column(columns: Mapping[str, str | None], wanted: str | None) -> tuple[str | None, list[Notice]]:
    """The column of labels of a whole dataset, and a notice if files have other ones.

    ``columns`` are the files' own ones by the name of the file. Columns of different names have different meanings, so
    images of files without the chosen one have no label.
    """
    column = label_column(sorted({each for each in columns.values() if each}), wanted)
    others = {file: other for file, other in columns.items() if other not in {None, column}}
    if not others:
        return column, []
    file, other = next(iter(others.items()))
    text = (
        f"Labels come from the column {column!r}, and images of files without it have none: {len(others)} of "
        f"{len(columns)} files have another column of labels, the first is {file} with {other!r}. Give the column the "
        "same name in all files"
    )
    return column, [Notice("label_columns_differ", text)]


def labels_of_values(values: Sequence[Any], source: str) -> tuple[Labels, list[Notice]]:
    """Labels of each image's text, number or truth value, as text files hold them; None is no label.

    Raises `Unusable` for other values.
    """
    # The values themselves are no keys: 1 equals True, and lists have no hash.
    numbers: dict[str | tuple[type, str], int] = {}
    keys = (value if isinstance(value, str) else (type(value), str(value)) for value in values)
    rows = [numbers.setdefault(key, len(numbers)) for key in keys]
    distinct = dict(zip(rows, values, strict=True))
    return labels_of_columns([LabelColumn(list(distinct.values()), np.array(rows, dtype=np.int64))], source)


def unusable_labels(count: int, column: str, error: Unusable, *, required: bool) -> tuple[Labels, list[Notice]]:
    """No labels and a notice, where a column cannot be used; raises `DataError` if the spec names it."""
    if required:
        raise DataError(f"dataset.label_column: {column!r} cannot be used: {error}") from error
    text = f"{column} looks like labels and is not used: {error}. Name another one in dataset.label_column"
    return Labels.none(count), [Notice(UNUSABLE, text)]


def arrow_column(column: pa.ChunkedArray, class_names: tuple[str, ...]) -> LabelColumn:
    """A column of a Parquet file. Raises `Unusable` if its type cannot be one of labels."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if _is_text(kind):
        column = column.cast(pa.large_binary())  # texts in a file may be invalid Unicode
    elif pa.types.is_floating(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise Unusable(f"its type is {kind}; names or whole numbers are needed")
    encoded = column.dictionary_encode().combine_chunks()
    values = encoded.dictionary.to_pylist()
    if _is_text(kind):
        values = [value.decode(errors="backslashreplace") for value in values]
    return LabelColumn(values, encoded.indices.fill_null(UNLABELLED).to_numpy().astype(np.int64), class_names)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def labels_of_columns(columns: Sequence[LabelColumn], source: str) -> tuple[Labels, list[Notice]]:
    """Labels of a dataset's files, one after the other. The same name or number is the same class in all of them.

    A file's class numbers get the names that it has for them first. Negative numbers and missing values are no label.
    Texts are numbers if all texts of the dataset are. Raises `Unusable` for values that are neither names nor numbers.
    """
    are_numbers = _are_numbers({value for column in columns for value in column.values if isinstance(value, str)})
    found = _meanings(columns, are_numbers=are_numbers)
    classes = _classes(columns, found)
    index: dict[str | None, int] = {name: number for number, name in enumerate(classes)} | {None: UNLABELLED}
    values = []
    for column, each in zip(columns, found, strict=True):
        numbers = [index[None if name is None else str(name)] for name, _ in each]
        values.append(np.array([*numbers, UNLABELLED])[column.rows])  # the row -1 is the last of them
    return Labels(np.concatenate(values), classes, source), _doubts(columns, found, source)


def _are_numbers(texts: set[str]) -> bool:
    """Whether texts are whole numbers, but for missing values."""
    present = [text for text in texts if text and text.lower() not in MISSING_NUMBERS]
    return bool(present) and all(_WHOLE_NUMBER.fullmatch(text) for text in present)


def _meanings(columns: Sequence[LabelColumn], *, are_numbers: bool) -> list[list[_Class]]:
    """What each value of each column means; texts are judged once for all files with the same names of classes."""
    judged: defaultdict[tuple[str, ...], dict[str, _Class]] = defaultdict(dict)
    found = []
    for column in columns:
        names, known = column.class_names, judged[column.class_names]
        for text in {value for value in column.values if isinstance(value, str)} - known.keys():
            known[text] = _class(text, names, are_numbers=are_numbers)
        found.append(
            [
                known[value] if isinstance(value, str) else _class(value, names, are_numbers=are_numbers)
                for value in column.values
            ]
        )
    return found


def _class(value: object, class_names: Sequence[str], *, are_numbers: bool) -> _Class:
    label = _value(value, are_numbers=are_numbers)
    if label is None:
        return _Class(None, "missing_labels" if isinstance(value, str) and value else None)
    if isinstance(label, str):
        return _Class(label)
    if label < 0:
        return _Class(None, "negative_labels")
    return _Class(class_names[label]) if label < len(class_names) else _Class(label, "unnamed_labels")


def _value(value: object, *, are_numbers: bool) -> str | int | None:
    """A text or whole number; None for a missing value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if value.is_integer():
            return int(value)
        if math.isnan(value):
            return None
        raise Unusable(f"it holds {value:g}, which is not a whole number")
    if value is None or isinstance(value, int):
        return value
    if not isinstance(value, str):
        raise Unusable(f"it holds {str(value)[:60]}; names or whole numbers are needed")
    if not value or value in NOT_A_NUMBER or (are_numbers and value.lower() in MISSING_NUMBERS):
        return None
    return int(value.partition(".")[0]) if are_numbers else valid_text(value)


def valid_text(text: str) -> str:
    """The text with escapes for lone surrogates, which JSON may hold and UTF-8 may not."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _classes(columns: Sequence[LabelColumn], found: Sequence[Sequence[_Class]]) -> tuple[str, ...]:
    """The names that files hold in their order, then numbers in theirs, then other names in alphabetical order."""
    stored = [name for column in columns for name in column.class_names]
    names = {name for each in found for name, _ in each}
    numbers = sorted(name for name in names if isinstance(name, int))
    texts = sorted(name for name in names if isinstance(name, str))
    return tuple(dict.fromkeys([*stored, *map(str, numbers), *texts]))


def _doubts(columns: Sequence[LabelColumn], found: Sequence[Sequence[_Class]], source: str) -> list[Notice]:
    """Notices about values that a person may have meant otherwise."""
    counts: Counter[str] = Counter()
    examples: dict[str, object] = {}
    for column, each in zip(columns, found, strict=True):
        images = np.bincount(column.rows[column.rows != UNLABELLED], minlength=len(column.values)).tolist()
        for value, (_, doubt), count in zip(column.values, each, images, strict=True):
            if doubt:
                counts[doubt] += count
                examples.setdefault(doubt, value)
    if not any(column.class_names for column in columns):
        del counts["unnamed_labels"]
    total = sum(len(column.rows) for column in columns)
    return [
        Notice(code, f"{count} of {total} images {_DOUBTS[code].format(source=source, example=examples[code])}")
        for code, count in counts.items()
    ]
