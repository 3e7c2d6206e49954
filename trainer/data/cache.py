"""A node's copies of datasets: files staged from elsewhere, and images kept decoded.

Both lie below one folder, shared by all workers of the node and by later jobs. Whoever comes first makes a copy, under
a lock; the others wait for it. A copy counts once its last act, a rename or the last line of its journal, is done.
Copies that are not in use make room for new ones, the longest unused first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from trainer.data.decode import JPEG_START, Raw, Unreadable, decode, decodes_whole
from trainer.data.index import CHUNK, SAY_EVERY_S, Index
from trainer.data.readers import Reader
from trainer.data.sources import Files
from trainer.errors import DataError, StorageError
from trainer.logger import logger
from trainer.storage import open_filesystem, sha256_of, told

FOLDER_VARIABLE: Final = "RCMAE_CACHE_DIR"
LIMIT_VARIABLE: Final = "RCMAE_CACHE_BYTES"
RAM_SHARE: Final = 0.25
"""Of the free memory that `auto` fills with decoded images."""
STAGING_THREADS: Final = 8
COPIED_BYTES: Final = 2**20
"""Of a file on a mount, at a time."""


def default_folder() -> Path:
    """Where copies lie unless told otherwise: `RCMAE_CACHE_DIR`, or a folder of the user's among temporary files."""
    given = os.environ.get(FOLDER_VARIABLE)
    return Path(given) if given else Path(tempfile.gettempdir()) / f"rcmae-cache-{os.getuid()}"


@dataclass(frozen=True)
class Cache:
    """The folder of a node's copies."""

    folder: Path = field(default_factory=default_folder)

    def _limit(self, used: int) -> int:
        """Bytes that all copies together may take: `RCMAE_CACHE_BYTES`, or half of what the disk has for them."""
        given = os.environ.get(LIMIT_VARIABLE)
        if given:
            if not given.isdecimal():
                raise StorageError(f"{LIMIT_VARIABLE}: {given!r} is no number of bytes")
            return int(given)
        self.folder.mkdir(parents=True, exist_ok=True)
        return (shutil.disk_usage(self.folder).free + used) // 2

    def _copies(self) -> list[Path]:
        """Every copy, half-made ones too, the longest unused first."""
        found = dict[Path, float]()
        for kind in ("staged", "decoded"):
            for path in (self.folder / kind).glob("*"):
                if path.suffix not in {MAKING, IN_USE}:
                    with contextlib.suppress(FileNotFoundError):  # another process has just finished or removed it
                        found[path.with_suffix("")] = path.stat().st_mtime
        return sorted(found, key=found.__getitem__)

    @contextlib.contextmanager
    def making(self, copy: Path) -> Iterator[None]:
        """Have a copy to oneself, to look for it or to make it; then keep it as long as this process lives.

        Raises `StorageError` for what this node's disk refuses meanwhile.
        """
        with told(str(copy)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            with _beside(copy, MAKING).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
                if copy.exists():
                    os.utime(copy)  # when it was last used
                    use = _beside(copy, IN_USE).open("ab")
                    fcntl.flock(use, fcntl.LOCK_SH)
                    _HELD.append(use)

    def make_room(self, need: int) -> str | None:
        """Remove copies nobody uses until ``need`` bytes fit; else why they do not."""
        sizes = {copy: _size(copy) for copy in self._copies()}
        limit, where = self._limit(sum(sizes.values())), f"{self.folder} ({LIMIT_VARIABLE})"
        if need > limit:
            return f"{_bytes(need)} do not fit into the {_bytes(limit)} of the cache in {where}"
        for copy in list(sizes):
            if sum(sizes.values()) + need <= limit:
                return None
            if self._remove_unused(copy):
                del sizes[copy]
        used = sum(sizes.values())
        if used + need > limit:
            return (
                f"{_bytes(need)} do not fit: {_bytes(used)} of the {_bytes(limit)} of the cache in {where} are in use"
            )
        return None

    def _remove_unused(self, copy: Path) -> bool:
        with _beside(copy, MAKING).open("ab") as making, _beside(copy, IN_USE).open("ab") as use:
            try:
                fcntl.flock(making, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            logger.info("Removing %s from the cache, it was not used lately", copy)
            if copy.is_dir():
                shutil.rmtree(copy)
            for file in (copy, _beside(copy, PART)):
                file.unlink(missing_ok=True)
            return True


PART: Final = ".part"
MAKING: Final = ".making"
IN_USE: Final = ".in-use"
_HELD: Final[list[IO[bytes]]] = []
"""Open lock files: a lock ends with the process."""


def _beside(copy: Path, suffix: str) -> Path:
    """A copy's lock file."""
    return copy.with_name(copy.name + suffix)


def _size(copy: Path) -> int:
    """Bytes of a copy; what has just gone counts nothing."""
    total, pending = 0, [copy, _beside(copy, PART)]
    while pending:
        path = pending.pop()
        with contextlib.suppress(FileNotFoundError):
            pending += path.iterdir() if path.is_dir() else []
            total += path.stat().st_size
    return total


def _bytes(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**28 else f"{count / 2**20:.1f} MiB"


# --- files, staged ----------------------------------------------------------------------------------------------------


def stage(files: Files, cache: Cache) -> Files | str:
    """The same files on this node's disk, copied once and checked against their sums; or why they do not fit.

    Raises `StorageError` where they cannot be read from where they are, or written here.
    """
    copy = cache.folder / "staged" / files.listing[:32]
    paths = tuple(str(copy / f"{number // 1000:06d}" / f"{number % 1000:03d}") for number in range(len(files.names)))
    with cache.making(copy):
        journal = copy / "journal.jsonl"
        present = _verified(journal, paths, files.sizes)
        missing = [number for number in range(len(paths)) if number not in present and number not in files.dangling]
        if missing:
            reason = cache.make_room(sum(files.sizes[number] for number in missing))
            if reason:
                return reason
            _copy(files, paths, missing, journal)
    return replace(files, remote=False, paths=paths)


def _verified(journal: Path, paths: Sequence[str], sizes: Sequence[int]) -> set[int]:
    """Which files are in place as the journal says: of the right size and sum."""
    if not journal.is_file():
        return set()
    sums: dict[int, str] = {}
    for line in journal.read_text().splitlines():
        with contextlib.suppress(ValueError, KeyError):  # a line cut short by a kill: that file is copied again
            entry = json.loads(line)
            sums[int(entry["file"])] = str(entry["sha256"])

    def fits(number: int) -> bool:
        path = Path(paths[number])
        return path.is_file() and path.stat().st_size == sizes[number] and sha256_of(path) == sums[number]

    known = [number for number in sums if number < len(paths)]
    with ThreadPoolExecutor(STAGING_THREADS) as pool:
        found = {number for number, right in zip(known, pool.map(fits, known), strict=True) if right}
    if len(found) < len(known):
        logger.warning(
            "%d staged files below %s are not as they were: copying them again", len(known) - len(found), journal.parent
        )
    return found


def _copy(files: Files, paths: Sequence[str], missing: Sequence[int], journal: Path) -> None:
    total, done, said = sum(files.sizes[number] for number in missing), 0, time.monotonic()
    logger.info("Staging %d files of %s (%s) to %s", len(missing), files.uri, _bytes(total), journal.parent)
    journal.parent.mkdir(parents=True, exist_ok=True)

    def copy(number: int) -> str:
        return _copy_one(files, number, Path(paths[number]))

    with journal.open("a") as log, ThreadPoolExecutor(STAGING_THREADS, thread_name_prefix="staging") as pool:
        log.write("\n")  # ends a line that a kill may have cut short
        try:
            for number, digest in zip(missing, pool.map(copy, missing), strict=True):
                log.write(json.dumps({"file": number, "sha256": digest}) + "\n")
                log.flush()
                done += files.sizes[number]
                if time.monotonic() - said > SAY_EVERY_S:
                    said = time.monotonic()
                    logger.info("Staging %s: %s of %s", files.uri, _bytes(done), _bytes(total))
        finally:
            pool.shutdown(cancel_futures=True)


def _copy_one(files: Files, number: int, target: Path) -> str:
    """Copy one file into place, whole or not at all; gives its sum."""
    part, place = _beside(target, PART), files.place(number)
    target.parent.mkdir(parents=True, exist_ok=True)
    if files.remote:
        fs, _ = open_filesystem(files.uri)
        with told(place):
            fs.get_file(files.paths[number], str(part))
    else:
        with told(str(part)), files.open_file(number) as original, part.open("wb") as fresh:
            shutil.copyfileobj(original, fresh, COPIED_BYTES)
    came = part.stat().st_size
    if came != files.sizes[number]:
        raise StorageError(f"{place}: {came} bytes came where it has {files.sizes[number]}: has it been written again?")
    digest = sha256_of(part)
    with told(str(target)), part.open("rb") as stream:
        os.fsync(stream.fileno())
        part.replace(target)
    return digest


# --- images, decoded --------------------------------------------------------------------------------------------------


class DecodedReader:
    """Images out of one file mapped into memory, which all workers of the node share.

    An image that would be decoded at a smaller scale for a small crop stays encoded: its pixels in full are not what
    training would see without the cache.
    """

    def __init__(
        self, file: Path, shapes: NDArray[np.int64], whole: NDArray[np.bool_], offsets: NDArray[np.int64]
    ) -> None:
        self._file, self._shapes, self._whole, self._offsets = file, shapes, whole, offsets
        self._data = np.memmap(file, dtype=np.uint8, mode="r")

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self._file, "shapes": self._shapes, "whole": self._whole, "offsets": self._offsets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def fetch(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Raw]:
        found: list[Raw] = []
        for row in rows:
            data = self._data[self._offsets[row] : self._offsets[row + 1]]
            found.append(data.reshape(self._shapes[row]) if self._whole[row] else data.data)
        return found


def keep_decoded(
    index: Index, reader: Reader, channels: int, size: tuple[int, int], cache: Cache, threads: int, *, must: bool
) -> Reader | str:
    """A reader of decoded images in memory, made once a node; or why they do not fit.

    ``must`` allows nearly all free memory; without it only a quarter.
    """
    shapes = np.stack([index.heights, index.widths, np.full(len(index), channels)], axis=1).astype(np.int64)
    whole = ~index.jpeg | [decodes_whole(JPEG_START, (h, w), size) for h, w, _ in shapes.tolist()]
    offsets = np.concatenate([[0], np.cumsum(np.where(whole, shapes.prod(axis=1), index.lengths))]).astype(np.int64)
    need, free = int(offsets[-1]), psutil.virtual_memory().available
    allowed = int(free * (0.8 if must else RAM_SHARE))
    if need > allowed:
        return f"{_bytes(need)} decoded are more than {_bytes(allowed)}, of {_bytes(free)} free memory"
    key = hashlib.sha256(f"{index.fingerprint} {channels} {size} 1".encode()).hexdigest()[:32]
    file = cache.folder / "decoded" / key
    with cache.making(file):
        if not file.is_file():
            reason = cache.make_room(need)
            if reason:
                return reason
            logger.info("Decoding %d images into memory (%s)", len(index), _bytes(need))
            _write_decoded(file, index, reader, channels, whole, offsets, threads)
    return DecodedReader(file, shapes, whole, offsets)


_CHANGED: Final = "is not what it was when the index was made: put it back as it was, or retry from scratch"


def _write_decoded(
    file: Path,
    index: Index,
    reader: Reader,
    channels: int,
    whole: NDArray[np.bool_],
    offsets: NDArray[np.int64],
    threads: int,
) -> None:
    part, size = _beside(file, PART), max(1, int(offsets[-1]))
    with told(str(part)), part.open("wb") as reserved:
        os.posix_fallocate(reserved.fileno(), 0, size)  # a full disk under a mapping would end the process
    data = np.memmap(part, dtype=np.uint8, mode="r+", shape=(size,))

    def write(first: int) -> None:
        rows = range(first, min(first + CHUNK, len(whole)))
        for row, raw in zip(rows, reader.fetch(rows), strict=True):
            try:
                pixels = decode(raw, channels).reshape(-1) if whole[row] else np.frombuffer(raw, dtype=np.uint8)
            except Unreadable as error:
                raise DataError(f"{index.table.names[row]} {_CHANGED} ({error})") from error
            if len(pixels) != offsets[row + 1] - offsets[row]:
                raise DataError(f"{index.table.names[row]} {_CHANGED}")
            data[offsets[row] : offsets[row + 1]] = pixels

    with told(str(part)), ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        list(pool.map(write, range(0, len(whole), CHUNK)))
        data.flush()
        part.replace(file)
