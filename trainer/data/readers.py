"""The encoded bytes of any image of a dataset, a few at a time, from wherever it lies."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from trainer.data.decode import Raw
from trainer.data.scan import Table, image_column
from trainer.data.sources import Files
from trainer.errors import DataError
from trainer.storage import open_filesystem, told

ROW_GROUP_BYTES: Final = 512 * 2**20
"""Row groups of Parquet files that a process keeps, by their images' bytes."""
DIGITS_SIDE: Final = 32


class Reader(Protocol):
    """Gives images by row. Safe from several threads, and in another process after pickling."""

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        """Encoded files, or pixels (H, W, C).

        Raises `OSError` for one that is not there, `StorageError` where the storage cannot be reached.
        """
        ...


def open_reader(files: Files, table: Table) -> Reader:
    """A reader of a scanned dataset; raises `DataError` where this node does not have its files."""
    if not files.remote and not os.path.lexists(files.paths[0]):
        raise DataError(
            f"dataset.uri: {files.uri} is not on this node: mount it on every node, or put it on S3 ({files.paths[0]})"
        )
    return ParquetReader(files, table) if files.kind == "parquet" else RangeReader(files, table)


class RangeReader:
    """Images that are runs of bytes in files: members of tars, or whole files."""

    def __init__(self, files: Files, table: Table) -> None:
        self._files, self._table = files, table
        self._whole = files.kind == "folder"
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_table": self._table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_files"], state["_table"])  # type: ignore[misc]

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        if self._files.remote:
            return self._fetch_remote(rows)
        return [self._read(int(row)) for row in rows]

    def _read(self, row: int) -> bytes:
        number = int(self._table.file[row])
        if self._whole:
            return Path(self._files.paths[number]).read_bytes()
        # Read, not mapped: a shard cut short under a mapping would end the process without a word.
        length = int(self._table.second[row])
        data = os.pread(self._descriptor(number), length, int(self._table.first[row]))
        if len(data) != length:
            raise OSError(f"{self._files.paths[number]} is shorter than it was")
        return data

    def _descriptor(self, number: int) -> int:
        with self._lock:
            if number not in self._open:
                self._open[number] = os.open(self._files.paths[number], os.O_RDONLY | os.O_CLOEXEC)
            return self._open[number]

    def __del__(self) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def _fetch_remote(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        table, paths = self._table, self._files.paths
        wanted = [paths[table.file[row]] for row in rows]
        starts = [int(table.first[row]) for row in rows]
        ends = [start + int(table.second[row]) for start, row in zip(starts, rows, strict=True)]
        fs, _ = open_filesystem(self._files.uri)
        missing: FileNotFoundError | None = None
        with told(self._files.place(int(self._table.file[rows[0]]))):
            try:
                # An empty file has no range to ask for.
                filled = [i for i, (start, end) in enumerate(zip(starts, ends, strict=True)) if end > start]
                parts = fs.cat_ranges(
                    [wanted[i] for i in filled],
                    [starts[i] for i in filled],
                    [ends[i] for i in filled],
                    on_error="raise",
                )
            except FileNotFoundError as error:
                missing = error
        if missing:
            raise missing
        found: list[Raw] = [b""] * len(wanted)
        for place, part in zip(filled, parts, strict=True):
            found[place] = part
        return found


class ParquetReader:
    """Images in the rows of Parquet files. A row comes with its whole row group; the last groups used are kept."""

    def __init__(self, files: Files, table: Table) -> None:
        self._files, self._table = files, table
        self._lock = threading.Lock()
        self._parquets: dict[int, pq.ParquetFile] = {}
        self._groups: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()
        self._kept = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_table": self._table}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_files"], state["_table"])  # type: ignore[misc]

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        found: list[Raw] = [b""] * len(rows)
        places = sorted(range(len(rows)), key=lambda i: (self._table.file[rows[i]], self._table.first[rows[i]]))
        for place in places:
            row = int(rows[place])
            group = self._group(int(self._table.file[row]), int(self._table.first[row]))
            value = group[int(self._table.second[row])]
            found[place] = memoryview(value.as_buffer()).cast("B") if value.is_valid else b""
        return found

    def _group(self, number: int, group: int) -> pa.Array:
        with self._lock:
            key = (number, group)
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            values = self._load(number, group)
            self._groups[key] = values
            self._kept += values.nbytes
            while self._kept > ROW_GROUP_BYTES and len(self._groups) > 1:
                self._kept -= self._groups.popitem(last=False)[1].nbytes
            return values

    def _load(self, number: int, group: int) -> pa.Array:
        place = self._files.place(number)
        with told(place):
            try:
                parquet = self._parquet(number)
                name = image_column(parquet.schema_arrow)
                nested = pa.types.is_struct(parquet.schema_arrow.field(name).type)
                table = parquet.read_row_group(group, columns=[f"{name}.bytes" if nested else name])
            except pa.ArrowException as error:
                raise DataError(f"{place}: row group {group} is damaged: {error}; make the file anew") from error
        values = table.column(0).combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks)
        return values.field("bytes") if nested else values

    def _parquet(self, number: int) -> pq.ParquetFile:
        if number not in self._parquets:
            path = self._files.paths[number]
            if self._files.remote:
                fs, _ = open_filesystem(self._files.uri)
                self._parquets[number] = pq.ParquetFile(fs.open(path, "rb", cache_type="none"))
            else:
                self._parquets[number] = pq.ParquetFile(path, memory_map=True)
        return self._parquets[number]


class DigitsReader:
    """Scikit-learn's 1,797 handwritten digits, 8 x 8, enlarged bicubically to 32 x 32: pixels, already decoded."""

    def __init__(self, channels: int) -> None:
        table = np.loadtxt(_digits_file(), delimiter=",", dtype=np.float64)
        small = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        large = [Image.fromarray(image).resize((DIGITS_SIDE, DIGITS_SIDE), Image.Resampling.BICUBIC) for image in small]
        grey = np.stack([np.asarray(image) for image in large])[:, :, :, None]
        self._pixels = np.repeat(grey, channels, axis=3)
        if channels == 4:
            self._pixels[:, :, :, 3] = 255
        self.labels = table[:, -1].astype(np.int64)
        self.classes = tuple(map(str, range(10)))

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        return [self._pixels[row] for row in rows]


def _digits_file() -> Path:
    """The file behind `sklearn.datasets.load_digits`, without importing scikit-learn: that takes more than a second of
    every worker's start. A row is an image's 64 values of 0 to 16 and its digit.
    """
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("builtin://digits comes with scikit-learn, which is not installed")
    return Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
