"""Scanning a dataset's files: where each image's bytes are, and its label."""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer.data.reading import DatasetFile
from trainer.data.sources import IMAGE_SUFFIXES, Files, is_hidden, suffix_of
from trainer.errors import DataError

READ_AHEAD: Final = 4 * 2**20
IMAGE_COLUMNS: Final = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_COLUMNS: Final = ("label", "labels", "fine_label", "class", "cls", "target")
LABEL_BYTES: Final = 4096
"""The longest text of a label that is read."""


@dataclass(frozen=True)
class Table:
    """Every image of a dataset, in order."""

    names: Sequence[str]
    """Each image's name in messages."""
    file: NDArray[np.int32]
    """Number of the file that holds it."""
    first: NDArray[np.int64]
    """In a folder or tar, the offset of its bytes within the file; in Parquet, the row group."""
    second: NDArray[np.int64]
    """In a folder or tar, the number of its bytes; in Parquet, the row within the row group."""
    labels: NDArray[np.int64] | None
    """Class of each image; None if the dataset has no labels."""
    classes: tuple[str, ...]
    """Names of the classes; empty if they have none."""

    def __len__(self) -> int:
        return len(self.file)


def scan(files: Files) -> Table:
    """Find the images in a dataset's files.

    Raises `DataError` for a damaged file or if there are no images, `StorageError` for a file that cannot be read.
    """
    table = {"folder": _scan_folder, "tar": _scan_tars, "parquet": _scan_parquet}[files.kind](files)
    if not len(table):
        raise DataError(f"dataset.uri: no images in the {len(files.names)} {files.kind} files of {files.uri}")
    return table


def _open_for_sequential_reading(files: Files, number: int) -> DatasetFile:
    return files.open_file(number, block_size=READ_AHEAD, cache_type="readahead")


# --- folders ----------------------------------------------------------------------------------------------------------


def _scan_folder(files: Files) -> Table:
    classes, labels = _labels_of_folders(files.names)
    count = len(files.names)
    return Table(
        names=files.names,
        file=np.arange(count, dtype=np.int32),
        first=np.zeros(count, dtype=np.int64),
        second=np.array(files.sizes, dtype=np.int64),
        labels=labels,
        classes=classes,
    )


def _labels_of_folders(names: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """The first level of sub-folders as classes, if there are at least two and every image lies in one of them."""
    tops = [name.split("/", 1)[0] for name in names if "/" in name]
    if len(tops) != len(names) or len(set(tops)) < 2:
        return (), None
    return _number_classes(tops)


def _number_classes(values: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The names of the classes, sorted, and each value's index among them."""
    classes = tuple(sorted(set(values)))
    number = {name: label for label, name in enumerate(classes)}
    return classes, np.array([number[value] for value in values], dtype=np.int64)


# --- tar shards -------------------------------------------------------------------------------------------------------


def _scan_tars(files: Files) -> Table:
    members: list[str] = []
    locations: list[tuple[int, int, int]] = []
    keys: list[tuple[int, str]] = []
    label_texts: dict[tuple[int, str], str] = {}
    for number, shard in enumerate(files.names):
        try:
            with _open_for_sequential_reading(files, number) as file:
                for member, offset, size, text in _members(file):
                    key = (number, _sample_key(member))
                    if text is not None:
                        label_texts[key] = text
                    else:
                        members.append(member)
                        locations.append((number, offset, size))
                        keys.append(key)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(
                f"dataset.uri: the shard {shard} of {files.uri} is damaged or not a tar file: {error}; create it again"
            ) from error
    classes, labels = _labels_of_members([label_texts.get(key) for key in keys], members)
    names = members
    if len(files.names) > 1:
        names = [f"{files.names[number]}/{member}" for member, (number, _, _) in zip(members, locations, strict=True)]
    columns = np.array(locations, dtype=np.int64).reshape(-1, 3)
    return Table(names, columns[:, 0].astype(np.int32), columns[:, 1], columns[:, 2], labels, classes)


def _members(file: DatasetFile) -> Iterator[tuple[str, int, int, str | None]]:
    """Name, offset and size of each image in a tar, and the text of each label; everything else is skipped.

    Raises `tarfile.TarError` for a damaged file.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        previous_offset = -1
        for member in tar:
            if member.size < 0 or member.offset <= previous_offset:  # it would be read in an endless loop
                raise tarfile.ReadError(f"the header of {member.name} points backwards")
            previous_offset = member.offset
            if not member.isreg() or member.issparse() or is_hidden(member.name):
                continue
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"it ends inside {member.name}")
            suffix = suffix_of(member.name)
            if suffix in IMAGE_SUFFIXES:
                yield member.name, member.offset_data, member.size, None
            elif suffix == ".cls" and (content := tar.extractfile(member)):
                yield member.name, 0, 0, content.read(LABEL_BYTES).decode(errors="replace").strip()
        # tarfile treats a damaged header as the end: after the last member there must be zeros or nothing.
        file.seek(tar.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no header at byte {tar.offset} of {end}")


def _sample_key(member: str) -> str:
    """What the members of one WebDataset sample share: the path up to the first dot of the last component."""
    folder, _, last = member.rpartition("/")
    return f"{folder}/{last.split('.', 1)[0]}"


def _labels_of_members(
    texts: Sequence[str | None], members: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Labels from `.cls` members if every image has one, or else from the folders in the members' names."""
    present = [text for text in texts if text is not None]
    if not present or len(present) != len(texts):
        return _labels_of_folders([posixpath.normpath(member) for member in members])
    if all(text.isdecimal() for text in present):
        return (), np.array([int(text) for text in present], dtype=np.int64)
    return _number_classes(present)


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _scan_parquet(files: Files) -> Table:
    names: list[str] = []
    locations: list[NDArray[np.int64]] = []
    label_columns: list[pa.ChunkedArray | None] = []
    schema_classes: tuple[str, ...] = ()
    for number, name in enumerate(files.names):
        try:
            with _open_for_sequential_reading(files, number) as file:
                parquet = pq.ParquetFile(file)
                image_column(parquet.schema_arrow)
                rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
                label = next((c for c in LABEL_COLUMNS if c in parquet.schema_arrow.names), None)
                label_columns.append(parquet.read(columns=[label]).column(0) if label else None)
                schema_classes = schema_classes or _class_names(parquet.schema_arrow, label)
        except (pa.ArrowException, OSError, DataError) as error:
            raise DataError(
                f"dataset.uri: {name} of {files.uri} cannot be read as Parquet with images: {error}"
            ) from error
        groups = np.repeat(np.arange(len(rows)), rows)
        within = np.concatenate([np.arange(count) for count in rows]) if rows else np.zeros(0)
        locations.append(np.stack([np.full(len(groups), number), groups, within], axis=1).astype(np.int64))
        names += [f"{name}#{row}" for row in range(len(groups))]
    columns = np.concatenate(locations)
    classes, labels = _labels_of_columns(label_columns)
    return Table(names, columns[:, 0].astype(np.int32), columns[:, 1], columns[:, 2], labels, classes or schema_classes)


def image_column(schema: pa.Schema) -> str:
    """The column of encoded images: bytes, or a struct with a field `bytes`. Raises `DataError` if there is none."""
    candidates = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for name in IMAGE_COLUMNS if name in candidates]
    if named or len(candidates) == 1:
        return (named or candidates)[0]
    raise DataError(
        f"it needs a column {IMAGE_COLUMNS[0]!r} of bytes, or of a struct with a field 'bytes'; "
        f"its columns are {', '.join(f'{field.name}: {field.type}' for field in schema)[:300]}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """The class names that Hugging Face's `ClassLabel` stores in the schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    if not text or not label:
        return ()
    try:
        feature: Any = json.loads(text)["info"]["features"][label]
        return tuple(str(name) for name in feature["names"])
    except (ValueError, KeyError, TypeError):  # another tool's metadata: the class numbers are enough
        return ()


def _labels_of_columns(columns: Sequence[pa.ChunkedArray | None]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Labels if every row of every file has one; a negative number means that a row has none."""
    if any(column is None or column.null_count for column in columns):
        return (), None
    if all(column is not None and pa.types.is_integer(column.type) for column in columns):
        values = np.concatenate([column.to_numpy() for column in columns if column is not None]).astype(np.int64)
        return ((), None) if (values < 0).any() else ((), values)
    if all(column is not None and pa.types.is_string(column.type) for column in columns):
        return _number_classes([str(value) for column in columns if column is not None for value in column.to_pylist()])
    return (), None
