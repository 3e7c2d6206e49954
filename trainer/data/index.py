"""Which images can be read, found out once and kept on the node."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainer.data.decode import Unreadable
from trainer.data.sampler import SPLIT, hash64
from trainer.data.sources import Source
from trainer.errors import DataError
from trainer.logs import logger
from trainer.spec.plan import HELD_OUT_MAX, HELD_OUT_SHARE

VERSION = 1
SPLIT_SEED = 0
"""The held-out images do not follow the spec's seed: runs of other seeds are measured on the same ones."""


@dataclass(frozen=True)
class BadImage:
    """A file that cannot be read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Index:
    """The readable images of a source."""

    good: NDArray[np.int64]
    """Their positions in the source."""
    bad: tuple[BadImage, ...]
    fingerprint: str
    """Identity of the data: sha256 over the readable images' names and pixels, the same wherever they lie."""

    def to_json(self) -> str:
        return json.dumps(
            {
                "version": VERSION,
                "good": self.good.tolist(),
                "bad": [[image.name, image.reason] for image in self.bad],
                "fingerprint": self.fingerprint,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Index:
        data = json.loads(text)
        bad = tuple(BadImage(name, reason) for name, reason in data["bad"])
        return cls(np.array(data["good"], dtype=np.int64), bad, data["fingerprint"])


def build_index(source: Source, cache_dir: Path, threads: int) -> Index:
    """Decode every image once, in threads, to learn which can be read; kept in ``cache_dir`` by the listing.

    Raises `DataError` where none can be read.
    """
    kept = cache_dir / f"index-v{VERSION}-{source.listing}.json"
    if kept.is_file():
        index = Index.from_json(kept.read_text())
    else:
        index = _read_all(source, threads)
        _write_atomic(kept, index.to_json())
    if not len(index.good):
        first = index.bad[0]
        raise DataError(
            f"dataset.uri: none of the {len(source)} files of {source.uri} can be read; "
            f"the first is {first.name} ({first.reason})"
        )
    return index


def _read_all(source: Source, threads: int) -> Index:
    def look(position: int) -> tuple[str, str]:
        """What goes into the fingerprint, or the reason why it cannot be read."""
        try:
            pixels = source.read(position)
        except (Unreadable, OSError) as error:
            return "", str(error) or type(error).__name__
        # Pixels' own digest: names and sizes alone would take two sets of frames of one camera for the same.
        return f"{pixels.shape} {hashlib.sha256(pixels.tobytes()).hexdigest()}", ""

    with ThreadPoolExecutor(threads, thread_name_prefix="index") as pool:
        looks = list(pool.map(look, range(len(source)), chunksize=64))
    good = np.array([position for position, (_, reason) in enumerate(looks) if not reason], dtype=np.int64)
    bad = tuple(BadImage(source.names[i], reason) for i, (_, reason) in enumerate(looks) if reason)
    digest = hashlib.sha256()
    for position in good:
        digest.update(f"{source.names[position]}\t{looks[position][0]}\n".encode(errors="surrogateescape"))
    logger.info("Index of %s: %d images can be read, %d cannot", source.uri, len(good), len(bad))
    return Index(good, bad, digest.hexdigest())


def _write_atomic(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)  # noqa: PTH105 - the two jobs of a node may write the same index at once


def split(images: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in the index to train on, ascending, and the held-out ones, in a fixed random order."""
    held = min(images // HELD_OUT_SHARE, HELD_OUT_MAX)
    shuffled = np.argsort(hash64(SPLIT_SEED, 0, np.arange(images), SPLIT), kind="stable")
    return np.sort(shuffled[held:]), shuffled[:held]
