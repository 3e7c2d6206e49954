"""Scanning a folder of images, with labels from `metadata.csv` or `metadata.jsonl`."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from trainer.data.columns import (
    Unusable,
    check_single,
    label_column,
    labels_of_values,
    shared_column,
    unusable_labels,
)
from trainer.data.labels import Labels
from trainer.data.notices import Notice
from trainer.data.sources import Files
from trainer.data.table import Table
from trainer.errors import DataError

FILE_COLUMN: Final = "file_name"

T = TypeVar("T")


def scan_folder(files: Files, wanted_label: str | None) -> Table:
    """The images of a folder. ``wanted_label`` is the column of their labels in the metadata files, if it was named."""
    numbers = np.setdiff1d(np.arange(len(files.names), dtype=np.int32), np.array(files.metadata, dtype=np.int32))
    names = [files.names[number] for number in numbers]
    found = _labels_of_metadata(files, names, wanted_label)
    if wanted_label and found is None:
        raise DataError(
            f"dataset.label_column: {wanted_label!r} is in no metadata.csv or metadata.jsonl of {files.uri}: "
            "remove it to take labels from the folders"
        )
    labels, notices = found or (Labels.none(len(names)), [])
    return Table(
        names=names,
        file=numbers,
        first=np.zeros(len(numbers), dtype=np.int64),
        second=np.array(files.sizes, dtype=np.int64)[numbers],
        labels=labels,
        notices=tuple(notices),
    )


class _Metadata(NamedTuple):
    """What a metadata file says."""

    rows: Sequence[Mapping[str, Any]]
    column: str | None
    """The column of labels; None if the file has none."""


def _labels_of_metadata(files: Files, names: Sequence[str], wanted: str | None) -> tuple[Labels, list[Notice]] | None:
    """Labels of the metadata files' rows; None if they have no column of labels."""
    found = {files.names[number]: _read_metadata(files, number, wanted) for number in files.metadata}
    column, notices = shared_column({name: metadata.column for name, metadata in found.items()}, wanted)
    if column is None:
        return None
    used = [name for name, metadata in found.items() if metadata.column == column]
    source = posixpath.basename(used[0])
    values: dict[str, Any] = {}
    for name in used:
        for row in found[name].rows:
            path = _plain(posixpath.join(posixpath.dirname(name), str(row[FILE_COLUMN])))
            if str(values.setdefault(path, row.get(column))) != str(row.get(column)):
                raise DataError(
                    f"dataset.uri: {path} has two labels in {name} of {files.uri}, {values[path]!r} and "
                    f"{row.get(column)!r}: remove one of its rows"
                )
    paths = [_plain(name) for name in names]
    try:
        labels, more = labels_of_values([values.get(path) for path in paths], source)
    except Unusable as error:
        labels, more = unusable_labels(len(names), column, error, required=bool(wanted))
    unknown = len(values.keys() - set(paths))
    if unknown and files.uri == files.root:  # a pattern leaves out files that the rows may name
        text = f"{unknown} of {len(values)} rows of {source} name files that are not there"
        more.append(Notice("metadata_without_images", text))
    return labels, notices + more


def _plain(path: str) -> str:
    """A path as it is compared: with slashes, also where Windows wrote backslashes."""
    return posixpath.normpath(path.replace("\\", "/"))


def _read_metadata(files: Files, number: int, wanted: str | None) -> _Metadata:
    """A metadata file's rows; raises `DataError` if it cannot be read or a row names no file."""
    name = files.names[number]
    with files.open_file(number) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
        rows, columns = _csv_rows(text, wanted) if name.endswith(".csv") else _jsonl_rows(text)
        return _Metadata(rows, label_column(columns, wanted) if rows else None)
    except UnicodeDecodeError as error:
        raise DataError(
            f"dataset.uri: {name} of {files.uri} is not UTF-8, first at byte {error.start}: save it as UTF-8"
        ) from error
    except DataError as error:
        raise DataError(f"dataset.uri: {name} of {files.uri} cannot be read: {error}") from error


def _csv_rows(text: str, wanted: str | None) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a csv file, if it has labels, and the names of its columns, which may recur. Raises `DataError`."""
    reader = csv.reader(io.StringIO(text, newline=None), strict=True, skipinitialspace=True)
    rows: list[dict[str, str]] = []
    try:
        lines = filter(None, reader)
        columns = [column.strip() for column in next(lines, [FILE_COLUMN])]
        if FILE_COLUMN not in columns:
            raise DataError(
                f"it has no column {FILE_COLUMN}, only {', '.join(map(repr, columns))[:300]}: add it, or save the file "
                "as UTF-8 with commas between the values"
            )
        check_single(columns, FILE_COLUMN)
        if label_column(columns, wanted) is None:
            return [], columns
        for values in lines:
            if len(values) != len(columns):
                raise DataError(
                    f"line {reader.line_num} does not have {len(columns)} values like the first line, but "
                    f"{len(values)}: quote values that contain commas, and write a comma for each empty one"
                )
            rows.append(_with_file(dict(zip(columns, values, strict=True)), reader.line_num))
    except csv.Error as error:
        raise DataError(f"line {reader.line_num}: {error}") from error
    return rows, columns


def _jsonl_rows(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a file with a JSON object in each line, and the names of all columns. Raises `DataError`."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold the other characters that end lines
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"line {number} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f'line {number} is no JSON object, such as {{"{FILE_COLUMN}": "a.png"}}')
        rows.append(_with_file(row, number))
    return rows, list(dict.fromkeys(column for row in rows for column in row))


def _with_file(row: dict[str, T], line: int) -> dict[str, T]:
    if not row.get(FILE_COLUMN):
        raise DataError(f"line {line} has no {FILE_COLUMN}: add it")
    return row
