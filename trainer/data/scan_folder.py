"""Scanning a folder of images, with labels from `metadata.csv` or `metadata.jsonl`."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from trainer.data.columns import Unusable, label_column, labels_of_values, unusable_labels
from trainer.data.labels import Labels
from trainer.data.notices import Notice
from trainer.data.sources import Files
from trainer.data.table import Table
from trainer.errors import DataError

FILE_COLUMN: Final = "file_name"


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


def _labels_of_metadata(files: Files, names: Sequence[str], wanted: str | None) -> tuple[Labels, list[Notice]] | None:
    """Labels of the metadata files' rows; None if they have no column of labels."""
    values: dict[str, Any] = {}
    source, used = "", ""
    for number in files.metadata:
        folder, _, base = files.names[number].rpartition("/")
        rows = list(_rows(files, number))
        for position, row in enumerate(rows):
            if not row.get(FILE_COLUMN):
                name = files.names[number]
                raise DataError(
                    f"dataset.uri: row {position + 1} of {name} of {files.uri} has no {FILE_COLUMN}: add it"
                )
        column = label_column({column for row in rows for column in row}, wanted)
        if column is None:
            continue
        source, used = source or base, used or column
        for row in rows:
            path = posixpath.normpath(posixpath.join(folder, str(row[FILE_COLUMN])))
            values[path] = row.get(column)
    if not source:
        return None
    try:
        labels, notices = labels_of_values([values.get(name) for name in names], source)
    except Unusable as error:
        return unusable_labels(len(names), used, error, required=bool(wanted))
    unknown = len(values.keys() - set(names))
    if unknown and files.uri == files.root:  # a pattern leaves out files that the rows may name
        text = f"{unknown} of {len(values)} rows of {source} name files that are not there"
        notices.append(Notice("metadata_without_images", text))
    return labels, notices


def _rows(files: Files, number: int) -> Iterator[Mapping[str, Any]]:
    """The rows of a metadata file, as mappings from column to value."""
    name = files.names[number]
    with files.open_file(number) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
        if name.endswith(".csv"):
            yield from csv.DictReader(io.StringIO(text), strict=True)
            return
        for line in text.splitlines():
            if line.strip():
                yield dict(json.loads(line))
    except (ValueError, TypeError, csv.Error) as error:
        raise DataError(f"dataset.uri: {name} of {files.uri} cannot be read: {error}") from error
