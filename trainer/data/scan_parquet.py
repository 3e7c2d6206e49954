"""Scanning Parquet files: their rows, and labels from a column."""

from __future__ import annotations

import json
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.data.columns import IMAGE_COLUMNS, Unusable, label_column, labels_of_column, unusable_labels
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


def scan_parquet(files: Files, wanted_image: str | None, wanted_label: str | None) -> Table:
    """The rows of Parquet files. ``wanted_image`` and ``wanted_label`` are columns that the spec names."""
    names: list[str] = []
    locations: list[NDArray[np.int64]] = []
    label_columns: list[pa.ChunkedArray] = []
    unlabelled: list[str] = []
    column = ""
    class_names: tuple[str, ...] = ()
    for number, name in enumerate(files.names):
        try:
            with files.open_file(number, block_size=READ_AHEAD, cache_type="readahead") as file:
                parquet = pq.ParquetFile(file)
                schema = parquet.schema_arrow
                _check_embedded(parquet, image_column(schema, wanted_image))
                rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
                label = label_column(schema.names, wanted_label)
                if label is None:
                    unlabelled.append(name)
                    label_columns.append(pa.chunked_array([pa.nulls(sum(rows))]))
                else:
                    column = column or label
                    class_names = class_names or _class_names(schema, label)
                    label_columns.append(parquet.read(columns=[label]).column(label))
        except (pa.ArrowException, OSError, DataError) as error:
            raise DataError(
                f"dataset.uri: {name} of {files.uri} cannot be read as Parquet with images: {error}"
            ) from error
        groups = np.repeat(np.arange(len(rows)), rows)
        within = np.concatenate([np.arange(count) for count in rows]) if rows else np.zeros(0)
        locations.append(np.stack([np.full(len(groups), number), groups, within], axis=1).astype(np.int64))
        names += [f"{name}#{row}" for row in range(len(groups))]
    if wanted_label and unlabelled:
        raise DataError(f"dataset.label_column: {wanted_label!r} is not a column of {unlabelled[0]} of {files.uri}")
    columns = np.concatenate(locations)
    labels, notices = _labels(label_columns, column, class_names, required=bool(wanted_label))
    return Table(
        names,
        columns[:, 0].astype(np.int32),
        columns[:, 1],
        columns[:, 2],
        labels,
        tuple(notices),
    )


def image_column(schema: pa.Schema, wanted: str | None) -> str:
    """The column of encoded images: bytes, or a struct with a field `bytes`. Raises `DataError` if there is none."""
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for name in ((wanted,) if wanted else IMAGE_COLUMNS) if name in candidates]
    if named or (len(candidates) == 1 and not wanted):
        return (named or candidates)[0]
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


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """The class names that Hugging Face's `ClassLabel` stores in the schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    if not text:
        return ()
    try:
        feature: Any = json.loads(text)["info"]["features"][label]
        return tuple(str(name) for name in feature["names"])
    except (ValueError, KeyError, TypeError):  # another tool's metadata: the class numbers are enough
        return ()


def _labels(
    columns: list[pa.ChunkedArray], name: str, class_names: tuple[str, ...], *, required: bool
) -> tuple[Labels, list[Notice]]:
    """The labels of all files' rows. A column that cannot be used is an error if ``required``, or else a notice."""
    rows = sum(map(len, columns))
    if not name:
        return Labels.none(rows), []
    try:
        return labels_of_column(_joined(columns), f"column:{name}", class_names)
    except Unusable as error:
        return unusable_labels(rows, name, error, required=required)


def _joined(columns: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """The columns of all files as one, of the type that they share; as text if there are numbers and names."""
    columns = [_decoded(column) for column in columns]
    kinds = {column.type for column in columns if not pa.types.is_null(column.type)}
    if len(kinds) <= 1:
        kind = next(iter(kinds), pa.null())
    elif all(pa.types.is_integer(kind) for kind in kinds):
        kind = pa.int64()
    elif all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in kinds):
        kind = pa.float64()
    else:
        kind = pa.string()
    try:
        return pa.chunked_array([chunk for column in columns for chunk in column.cast(kind).chunks], kind)
    except pa.ArrowException as error:
        raise Unusable(f"its types differ between the files, {', '.join(map(str, kinds))}: {error}") from error


def _decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
