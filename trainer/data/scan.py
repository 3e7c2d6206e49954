"""What lies in a dataset's files: where each image's bytes are, and its label."""

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
from trainer.data.sources import IMAGE_SUFFIXES, Files, suffix_of
from trainer.errors import DataError

READ_AHEAD: Final = 4 * 2**20
IMAGE_COLUMNS: Final = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo")
LABEL_COLUMNS: Final = ("label", "labels", "fine_label", "class", "cls", "target")
LABEL_BYTES: Final = 4096
"""A label's text is at most this long."""


@dataclass(frozen=True)
class Table:
    """Every image of a dataset, in its order. Two numbers say where its bytes are: in a folder or tar, offset and
    length within its file; in Parquet, the row group and the row within it.
    """

    names: Sequence[str]
    """What people know each image by."""
    file: NDArray[np.int32]
    """Which of the dataset's files."""
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    """Class of each image; None where there are none."""
    classes: tuple[str, ...]
    """Names of the classes, where they have names."""

    def __len__(self) -> int:
        return len(self.file)


def scan(files: Files) -> Table:
    """Find the images in a dataset's files; raises `DataError` for damaged ones, `StorageError` for unreadable ones."""
    table = {"folder": _scan_folder, "tar": _scan_tars, "parquet": _scan_parquet}[files.kind](files)
    if not len(table):
        raise DataError(f"dataset.uri: no images in the {len(files.names)} {files.kind} files of {files.uri}")
    return table


def _from_front_to_back(files: Files, number: int) -> DatasetFile:
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
    """Where every image lies in one of at least two sub-folders, the first level of sub-folders are the classes."""
    tops = [name.split("/", 1)[0] for name in names if "/" in name]
    if len(tops) != len(names) or len(set(tops)) < 2:
        return (), None
    return _numbered(tops)


def _numbered(values: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    classes = tuple(sorted(set(values)))
    number = {name: label for label, name in enumerate(classes)}
    return classes, np.array([number[value] for value in values], dtype=np.int64)


# --- tar shards -------------------------------------------------------------------------------------------------------


def _scan_tars(files: Files) -> Table:
    members: list[str] = []
    places: list[tuple[int, int, int]] = []
    keys: list[tuple[int, str]] = []
    texts: dict[tuple[int, str], str] = {}
    for number, shard in enumerate(files.names):
        try:
            with _from_front_to_back(files, number) as file:
                for member, offset, size, text in _members(file):
                    key = (number, _key(member))
                    if text is not None:
                        texts[key] = text
                    else:
                        members.append(member)
                        places.append((number, offset, size))
                        keys.append(key)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(
                f"dataset.uri: the shard {shard} of {files.uri} is damaged or no tar: {error}; make it anew"
            ) from error
    classes, labels = _labels_of_members([texts.get(key) for key in keys], members)
    pairs = zip(members, places, strict=True)
    names = members if len(files.names) == 1 else [f"{files.names[place[0]]}/{member}" for member, place in pairs]
    columns = np.array(places, dtype=np.int64).reshape(-1, 3)
    return Table(names, columns[:, 0].astype(np.int32), columns[:, 1], columns[:, 2], labels, classes)


def _members(file: DatasetFile) -> Iterator[tuple[str, int, int, str | None]]:
    """Name, offset and size of each image of a tar, and the text of each label; everything else is passed over."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        before = -1
        for member in tar:
            if member.size < 0 or member.offset <= before:
                raise tarfile.ReadError(f"the header of {member.name} leads back")  # and would for ever
            before = member.offset
            if not member.isreg() or member.issparse() or _hidden(member.name):
                continue
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"it ends inside {member.name}")
            suffix = suffix_of(member.name)
            if suffix in IMAGE_SUFFIXES:
                yield member.name, member.offset_data, member.size, None
            elif suffix == ".cls" and (content := tar.extractfile(member)):
                yield member.name, 0, 0, content.read(LABEL_BYTES).decode(errors="replace").strip()
        # tarfile takes a damaged header for the end: behind the last member there may be nothing, or zeros.
        file.seek(tar.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no header at byte {tar.offset} of {end}")


def _hidden(name: str) -> bool:
    return any(part.startswith(".") and part not in {".", ".."} for part in name.split("/"))


def _key(member: str) -> str:
    """What the files of one WebDataset sample share: the path up to the first dot of the last part."""
    folder, _, last = member.rpartition("/")
    return f"{folder}/{last.split('.', 1)[0]}"


def _labels_of_members(
    texts: Sequence[str | None], members: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """From `.cls` members where every image has one, else from the folders in the members' names."""
    given = [text for text in texts if text is not None]
    if not given or len(given) != len(texts):
        return _labels_of_folders([posixpath.normpath(member) for member in members])
    if all(text.isdecimal() for text in given):
        return (), np.array([int(text) for text in given], dtype=np.int64)
    return _numbered(given)


# --- Parquet ----------------------------------------------------------------------------------------------------------


def _scan_parquet(files: Files) -> Table:
    names: list[str] = []
    places: list[NDArray[np.int64]] = []
    labels: list[pa.ChunkedArray | None] = []
    classes: tuple[str, ...] = ()
    for number, name in enumerate(files.names):
        try:
            with _from_front_to_back(files, number) as file:
                parquet = pq.ParquetFile(file)
                image_column(parquet.schema_arrow)
                rows = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
                label = next((c for c in LABEL_COLUMNS if c in parquet.schema_arrow.names), None)
                labels.append(parquet.read(columns=[label]).column(0) if label else None)
                classes = classes or _class_names(parquet.schema_arrow, label)
        except (pa.ArrowException, OSError, DataError) as error:
            raise DataError(
                f"dataset.uri: {name} of {files.uri} cannot be read as Parquet with images: {error}"
            ) from error
        groups = np.repeat(np.arange(len(rows)), rows)
        within = np.concatenate([np.arange(count) for count in rows]) if rows else np.zeros(0)
        places.append(np.stack([np.full(len(groups), number), groups, within], axis=1).astype(np.int64))
        names += [f"{name}#{row}" for row in range(len(groups))]
    columns = np.concatenate(places)
    found, values = _labels_of_column(labels)
    return Table(names, columns[:, 0].astype(np.int32), columns[:, 1], columns[:, 2], values, found or classes)


def image_column(schema: pa.Schema) -> str:
    """The column that holds encoded images: a struct with `bytes`, or bytes; raises `DataError` where there is none."""
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for name in IMAGE_COLUMNS if name in fitting]
    if named or len(fitting) == 1:
        return (named or fitting)[0]
    raise DataError(
        f"it needs a column {IMAGE_COLUMNS[0]!r} of bytes, or of a struct with a field 'bytes'; "
        f"its columns are {', '.join(f'{field.name}: {field.type}' for field in schema)[:300]}"
    )


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_bytes(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _class_names(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """The names Hugging Face's `ClassLabel` keeps in the schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    if not text or not label:
        return ()
    try:
        feature: Any = json.loads(text)["info"]["features"][label]
        return tuple(str(name) for name in feature["names"])
    except (ValueError, KeyError, TypeError):  # other tools' notes: the numbers are labels enough
        return ()


def _labels_of_column(columns: Sequence[pa.ChunkedArray | None]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """Labels where every row of every file has one; a negative number means that there is none."""
    if any(column is None or column.null_count for column in columns):
        return (), None
    if all(column is not None and pa.types.is_integer(column.type) for column in columns):
        values = np.concatenate([column.to_numpy() for column in columns if column is not None]).astype(np.int64)
        return ((), None) if (values < 0).any() else ((), values)
    if all(column is not None and pa.types.is_string(column.type) for column in columns):
        return _numbered([str(value) for column in columns if column is not None for value in column.to_pylist()])
    return (), None
