"""Readers: the encoded bytes of a dataset's images, a few at a time, from a disk, a mount or S3."""

from __future__ import annotations

import copy
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from trainer.data.decode import Raw
from trainer.data.reading import read_patiently, reading_error, shown_name
from trainer.data.scan_parquet import image_column
from trainer.data.sources import Files
from trainer.data.table import Table
from trainer.errors import DataError
from trainer.storage import REMOTE_ERRORS, error_code, open_filesystem

ROW_GROUP_BYTES: Final = 512 * 2**20
"""Bytes of row groups that a process keeps in memory."""
OPEN_FILES: Final = 64
"""Shards or Parquet files that a process keeps open; the least recently used one is closed for another."""
DIGITS_SIDE: Final = 32
"""Pixels."""


class Reader(Protocol):
    """Reads images by their row. Safe for several threads, and in another process after pickling."""

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        """Encoded image files, or pixels (H, W, C).

        Raises `StorageError` if the bytes cannot be read, and `DataError` if the file that holds an image is damaged or
        shorter than when it was listed.
        """
        ...


def open_reader(files: Files, table: Table, wanted_image: str | None) -> Reader:
    """A reader of a scanned dataset; raises `DataError` if this node does not have its files.

    ``wanted_image`` is the column of images in Parquet files, if the spec names one.
    """
    present = (files.paths[number] for number in table.file.tolist() if number not in files.dangling)
    first = None if files.remote else next(present, None)
    if first is not None and not read_patiently(first, lambda: _exists(first)):
        raise DataError(
            f"dataset.uri: {files.uri} is not on this node: mount it on every node, or put it on S3 "
            f"({shown_name(first)})"
        )
    return ParquetReader(files, table, wanted_image) if files.kind == "parquet" else RangeReader(files, table)


def _exists(path: str) -> bool:
    """Like `os.path.exists`, but raises `OSError` if the answer cannot be found out."""
    try:
        os.stat(path)  # noqa: PTH116 - names may be invalid Unicode; the path is all that is needed
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


class _Descriptor:
    """An open file descriptor, closed with its last reference: threads may still read from one that was replaced."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class RangeReader:
    """Reads images that are ranges of bytes: members of tars, or whole files."""

    def __init__(self, files: Files, table: Table) -> None:
        self._files, self._table = files, table
        self._whole_files = files.kind == "folder"
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()
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
        path = self._files.paths[self._table.file[row]]
        if self._whole_files:
            return read_patiently(path, Path(path).read_bytes)
        return self._check_length(row, read_patiently(path, lambda: self._read_range(row)))

    def _read_range(self, row: int) -> bytes:
        """Read, not mapped: truncating a mapped shard would kill the process without a message."""
        number = int(self._table.file[row])
        descriptor = self._descriptor(number)
        try:
            return os.pread(descriptor.number, int(self._table.second[row]), int(self._table.first[row]))
        except OSError:  # the handle may be stale: the next try opens the file anew
            with self._lock:
                if self._open.get(number) is descriptor:
                    del self._open[number]
            raise

    def _descriptor(self, number: int) -> _Descriptor:
        with self._lock:
            if number not in self._open:
                self._open[number] = _Descriptor(self._files.paths[number])
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            self._open.move_to_end(number)
            return self._open[number]

    def _fetch_remote(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        table = self._table
        nonempty = [int(row) for row in rows if table.second[row]]  # an empty file has no range to request
        fs, _ = open_filesystem(self._files.uri)
        answers = fs.cat_ranges(
            [self._files.paths[table.file[row]] for row in nonempty],
            [int(table.first[row]) for row in nonempty],
            [int(table.first[row] + table.second[row]) for row in nonempty],
            on_error="return",
        )
        images = {
            row: self._check_length(row, self._data(row, answer)) for row, answer in zip(nonempty, answers, strict=True)
        }
        return [images.get(int(row), b"") for row in rows]

    def _data(self, row: int, answer: bytes | BaseException) -> bytes:
        """The bytes of an image that S3 has sent; raises the error if the request failed."""
        if isinstance(answer, bytes):
            return answer
        if isinstance(answer, (OSError, *REMOTE_ERRORS)):
            if error_code(answer) == "InvalidRange":  # the object is too short
                return b""
            raise reading_error(self._files.location(int(self._table.file[row])), answer) from answer
        raise answer

    def _check_length(self, row: int, data: bytes) -> bytes:
        """``data`` if it is complete; raises `DataError` if the file has been truncated."""
        if len(data) == self._table.second[row]:
            return data
        raise DataError(
            f"{self._table.names[row]}: {self._files.location(int(self._table.file[row]))} is shorter than when it was "
            "listed: restore it, or retry from scratch"
        )


class ParquetReader:
    """Reads images from rows of Parquet files: whole row groups, of which the most recently used stay in memory."""

    def __init__(self, files: Files, table: Table, wanted_image: str | None) -> None:
        self._files, self._table, self._wanted_image = files, table, wanted_image
        self._lock = threading.Lock()
        self._parquets: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], pa.Array] = OrderedDict()
        self._kept_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files, "_table": self._table, "_wanted_image": self._wanted_image}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_files"], state["_table"], state["_wanted_image"])  # type: ignore[misc]

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        images: list[Raw] = [b""] * len(rows)
        by_group = sorted(range(len(rows)), key=lambda i: (self._table.file[rows[i]], self._table.first[rows[i]]))
        for position in by_group:
            row = int(rows[position])
            group = self._group(int(self._table.file[row]), int(self._table.first[row]))
            value = group[int(self._table.second[row])]
            images[position] = memoryview(value.as_buffer()).cast("B") if value.is_valid else b""
        return images

    def _group(self, number: int, group: int) -> pa.Array:
        with self._lock:
            key = (number, group)
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
            values = self._load(number, group)
            self._groups[key] = values
            self._kept_bytes += values.nbytes
            while self._kept_bytes > ROW_GROUP_BYTES and len(self._groups) > 1:
                self._kept_bytes -= self._groups.popitem(last=False)[1].nbytes
            return values

    def _load(self, number: int, group: int) -> pa.Array:
        try:
            parquet = self._parquet(number)
            name = image_column(parquet.schema_arrow, self._wanted_image)
            nested = pa.types.is_struct(parquet.schema_arrow.field(name).type)
            table = parquet.read_row_group(group, columns=[f"{name}.bytes" if nested else name])
        except (pa.ArrowException, OSError) as error:
            location = self._files.location(number)
            raise DataError(f"{location}: row group {group} is damaged: {error}; create the file again") from error
        values = table.column(name).combine_chunks()  # a column `a.b` and a field `b` of `a` are read together
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks)
        return values.field("bytes") if nested else values

    def _parquet(self, number: int) -> pq.ParquetFile:
        if number not in self._parquets:
            # Read, not mapped, for the same reason as in `_read_range`.
            self._parquets[number] = pq.ParquetFile(self._files.open_file(number, cache_type="none"))
            if len(self._parquets) > OPEN_FILES:
                self._parquets.popitem(last=False)[1].close(force=True)
        self._parquets.move_to_end(number)
        return self._parquets[number]


class DigitsReader:
    """Scikit-learn's 1,797 handwritten digits, 8 x 8, enlarged bicubically to 32 x 32: pixels, not encoded files."""

    def __init__(self, channels: int) -> None:
        table = np.loadtxt(_digits_file(), delimiter=",", dtype=np.float64)
        small = np.rint(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        large = [Image.fromarray(image).resize((DIGITS_SIDE, DIGITS_SIDE), Image.Resampling.BICUBIC) for image in small]
        grey = np.stack([np.asarray(image) for image in large])[:, :, :, None]
        self.pixels = np.repeat(grey, channels, axis=3)
        if channels == 4:
            self.pixels[:, :, :, 3] = 255
        self.labels = table[:, -1].astype(np.int64)
        self.classes = tuple(map(str, range(10)))

    def select(self, rows: NDArray[np.int64]) -> Self:
        """A reader of only some digits."""
        chosen = copy.copy(self)
        chosen.pixels, chosen.labels = self.pixels[rows], self.labels[rows]
        return chosen

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        return [self.pixels[row] for row in rows]


def _digits_file() -> Path:
    """The file behind `sklearn.datasets.load_digits`. A row is an image's 64 values of 0 to 16 and its digit.

    scikit-learn is not imported: that would add more than a second to every worker's start.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("builtin://digits comes with scikit-learn, which is not installed: install it")
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
