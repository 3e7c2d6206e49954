"""Where images come from: a folder, or the digits that scikit-learn carries."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.data.decode import decode
from trainer.errors import DataError
from trainer.spec.pretrain import DIGITS

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})
DIGITS_SIDE = 32


class Source(Protocol):
    """Images by position. Reading is safe from several threads."""

    uri: str
    names: Sequence[str]
    """What people know each image by."""
    labels: NDArray[np.int64] | None
    """Class of each image; None where there are none."""
    classes: tuple[str, ...]
    listing: str
    """Identity of the list of images as it is now: changes when a file is added, taken away or written again."""

    def __len__(self) -> int: ...

    def read(self, position: int) -> NDArray[np.uint8]:
        """Pixels (H, W, C); raises `trainer.data.decode.Unreadable`."""
        ...


def open_source(uri: str, channels: int) -> Source:
    """The images behind a dataset's URI; raises `DataError` where there are none."""
    return Digits(channels) if uri == DIGITS else Folder(uri, channels)


class Digits:
    """Scikit-learn's 1,797 handwritten digits, 8 x 8, enlarged bicubically to 32 x 32."""

    def __init__(self, channels: int) -> None:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - a second that only this source spends

        data = load_digits()
        small = np.rint(data.images * (255 / 16)).astype(np.uint8)
        large = [Image.fromarray(image).resize((DIGITS_SIDE, DIGITS_SIDE), Image.Resampling.BICUBIC) for image in small]
        grey = np.stack([np.asarray(image) for image in large])[:, :, :, None]
        self._pixels = np.repeat(grey, channels, axis=3)
        if channels == 4:
            self._pixels[:, :, :, 3] = 255
        self.uri = DIGITS
        self.names: Sequence[str] = [f"digit-{position:04d}" for position in range(len(small))]
        self.labels: NDArray[np.int64] | None = data.target.astype(np.int64)
        self.classes = tuple(str(name) for name in data.target_names)
        self.listing = hashlib.sha256(small.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, position: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self._pixels[position]
        return pixels


class Folder:
    """Image files below a folder, in the order of their paths.

    Where every image lies in one of at least two sub-folders, the first level of sub-folders are the classes. Hidden
    files and folders are passed over.
    """

    def __init__(self, uri: str, channels: int) -> None:
        self.uri = uri
        self._root, self._channels = Path(uri.removeprefix("file://")), channels
        if not self._root.is_dir():
            raise DataError(f"dataset.uri: there is no folder {self._root} on this node: check the path and its mount")
        try:
            found = sorted(self._list(self._root, ""))
        except OSError as error:
            raise DataError(f"dataset.uri: {self._root} cannot be listed: {error}") from error
        if not found:
            raise DataError(
                f"dataset.uri: no images in {self._root}: it needs files named {', '.join(sorted(SUFFIXES))}"
            )
        self.names: Sequence[str] = [name for name, _, _ in found]
        listed = "\n".join(f"{name}\t{size}\t{time}" for name, size, time in found)
        self.listing = hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()
        tops = [name.split("/", 1)[0] for name in self.names if "/" in name]
        self.classes = tuple(sorted(set(tops))) if len(tops) == len(found) else ()
        self.labels: NDArray[np.int64] | None = None
        if len(self.classes) >= 2:
            number = {name: label for label, name in enumerate(self.classes)}
            self.labels = np.array([number[top] for top in tops], dtype=np.int64)
        else:
            self.classes = ()

    def _list(self, folder: Path, prefix: str) -> list[tuple[str, int, int]]:
        """Name, size and time of change of each image below a folder."""
        found: list[tuple[str, int, int]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    found += self._list(Path(entry.path), f"{name}/")
                elif Path(entry.name).suffix.lower() in SUFFIXES:
                    try:
                        status = entry.stat()
                    except FileNotFoundError:  # a link to nowhere: listed, to be told among the unreadable
                        found.append((name, 0, 0))
                    else:
                        found.append((name, status.st_size, status.st_mtime_ns))
        return found

    def __len__(self) -> int:
        return len(self.names)

    def read(self, position: int) -> NDArray[np.uint8]:
        pixels = decode((self._root / self.names[position]).read_bytes(), self._channels)
        return pixels.reshape(pixels.shape[0], pixels.shape[1], self._channels)
