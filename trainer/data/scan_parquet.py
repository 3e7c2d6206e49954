"""Scanning Parquet files: their rows, and labels from a column."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.data.columns import (
    IMAGE_COLUMNS,
    LabelColumn,
    Unusable,
    arrow_column,
    check_single,
    label_column,
    labels_of_columns,
    shared_column,
    unusable_labels,
    valid_text,
)
from trainer.data.labels import Labels
from trainer.data.notices import Notice
from trainer.data.sources import Files
from trainer.data.table import Table
from trainer.errors import DataError

READ_AHEAD: Final = 4 * 2**20
EMBED: Final = (
    "the images themselves are not in the file, only their paths. Embed them, for example with Hugging Face datasets: "
    "dataset.with_format('arrow').map(datasets.table.embed_table_storage, batched=True).to_parquet(…)"
)


class _FileLabels(NamedTuple):
    """What one file says about its images' labels."""

    column: str | None
    """Name of the column; None if the file has none."""
    values: pa.ChunkedArray
    """One for each row, all null if there is no column."""
    class_names: tuple[str, ...]
    """Of the classes 0, 1 …, if the file has them."""


def scan_parquet(files: Files, wanted_image: str | None, wanted_label: str | None) -> Table:
    """The rows of Parquet files. ``wanted_image`` and ``wanted_label`` are columns that the spec names."""
    names: list[str] = []
    locations: list[NDArray[np.int64]] = []
    file_labels: dict[str, _FileLabels] = {}
    for number, name in enumerate(files.names):
        try:
            with files.open_file(number, block_size=READ_AHEAD, cache_type="readahead") as file:
                parquet = pq.ParquetFile(file)
                _check_embedded(parquet, image_column(parquet.schema_arrow, wanted_image))
                rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
                file_labels[name] = _labels_of_file(parquet, wanted_label)
        except (pa.ArrowException, OSError, DataError) as error:
            raise DataError(
                f"dataset.uri: {name} of {files.uri} cannot be read as Parquet with images: {error}"
            ) from error
        groups = np.repeat(np.arange(len(rows)), rows)
        within = np.concatenate([np.arange(count) for count in rows]) if rows else np.zeros(0)
        locations.append(np.stack([np.full(len(groups), number), groups, within], axis=1).astype(np.int64))
        names += [f"{name}#{row}" for row in range(len(groups))]
    unlabelled = [name for name, found in file_labels.items() if found.column is None]
    if wanted_label and unlabelled:
        raise DataError(f"dataset.label_column: {wanted_label!r} is not a column of {unlabelled[0]} of {files.uri}")
    columns = np.concatenate(locations)
    labels, notices = _labels(file_labels, wanted_label)
    return Table(
        names,
        columns[:, 0].astype(np.int32),
        columns[:, 1],
        columns[:, 2],
        labels,
        tuple(notices),
    )


def image_column(schema: pa.Schema, wanted: str | None) -> str:
    """The column of encoded images: bytes, or a struct with a field `bytes`.

    Raises `DataError` if there is none, or several of its name.
    """
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for name in ((wanted,) if wanted else IMAGE_COLUMNS) if name in candidates]
    if named or (len(candidates) == 1 and not wanted):
        column: str = (named or candidates)[0]
        check_single(schema.names, column)
        return column
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema)[:300]
    if wanted:
        raise DataError(f"dataset.image_column: {wanted!r} is no column of images; the columns are {columns}")
    if len(candidates) > 1:
        raise DataError(f"it has several columns of bytes: name one in dataset.image_column; its columns are {columns}")
    paths = [name for name in (*IMAGE_COLUMNS, "path", "file_name") if name in schema.names]
    raise DataError(
        (f"{EMBED}; " if paths else "")
        + f"it needs a column {IMAGE_COLUMNS[0]!r} of bytes, or of a struct with a field 'bytes'; "
        f"its columns are {columns}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _check_embedded(parquet: pq.ParquetFile, column: str) -> None:
    """Raise `DataError` if a file's statistics say that none of its rows holds an image."""
    leaves = [f"{column}.bytes", column]
    for group in range(parquet.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        for index in range(metadata.num_columns):
            leaf = metadata.column(index)
            if leaf.path_in_schema in leaves:
                statistics = leaf.statistics
                known = statistics is not None and statistics.has_null_count
                if not known or statistics.null_count < metadata.num_rows:
                    return
    if parquet.metadata.num_rows:
        raise DataError(EMBED)


def _labels_of_file(parquet: pq.ParquetFile, wanted: str | None) -> _FileLabels:
    schema = parquet.schema_arrow
    column = label_column(schema.names, wanted)
    if column is None:
        return _FileLabels(None, pa.chunked_array([pa.nulls(parquet.metadata.num_rows)]), ())
    return _FileLabels(column, parquet.read(columns=[column]).column(column), _class_names(schema, column))


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The class names that Hugging Face's `ClassLabel` stores in the schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    if not text:
        return ()
    try:
        feature: Any = json.loads(text)["info"]["features"][label]
        return tuple(valid_text(str(name)) for name in feature["names"])
    except (ValueError, KeyError, TypeError, RecursionError):  # another tool's metadata: the class numbers are enough
        return ()


def _labels(files: Mapping[str, _FileLabels], wanted: str | None) -> tuple[Labels, list[Notice]]:
    """The labels of all files' rows, by the files' names; raises `DataError` if the spec's column cannot be used."""
    rows = sum(len(file.values) for file in files.values())
    column, notices = shared_column({name: file.column for name, file in files.items()}, wanted)
    if column is None:
        return Labels.none(rows), []
    try:
        labels, more = labels_of_columns(
            [
                arrow_column(file.values, file.class_names)
                if file.column == column
                else LabelColumn.none(len(file.values))
                for file in files.values()
            ],
            f"column:{column}",
        )
    except Unusable as error:
        labels, more = unusable_labels(rows, column, error, required=bool(wanted))
    return labels, notices + more
