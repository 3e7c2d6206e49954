"""Sets of images for tests: the same as a folder, as tar shards and as Parquet files."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_images
from trainer.data.images import Images
from trainer.spec.dataset import DatasetSpec

CLASSES = ("cat", "dog", "eel")


@dataclass(frozen=True)
class Sample:
    """An image file."""

    name: str
    """With its class as its folder."""
    data: bytes
    label: int


def picture(number: int, size: tuple[int, int], form: str = "JPEG", **options: Any) -> bytes:
    """A smooth picture that no other number gives, as a file; ``size`` is (width, height)."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    file = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(file, form, **options)
    return file.getvalue()


def samples(count: int = 30, largest: int = 220) -> list[Sample]:
    """JPEG and PNG files of many sizes, some far larger than what is trained on, in the order of their names."""
    made = []
    for number in range(count):
        label = number * len(CLASSES) // count
        size = (24 + number * 37 % (largest - 24), 24 + number * 53 % (largest - 24))
        form, suffix = ("PNG", "png") if number % 4 == 0 else ("JPEG", "jpg")
        made.append(Sample(f"{CLASSES[label]}/{number:04d}.{suffix}", picture(number, size, form), label))
    return made


def write_folder(root: Path, made: list[Sample]) -> str:
    for sample in made:
        (root / sample.name).parent.mkdir(parents=True, exist_ok=True)
        (root / sample.name).write_bytes(sample.data)
    return str(root)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_tars(root: Path, made: list[Sample], shards: int = 3) -> str:
    """WebDataset shards: `0007.jpg` with its label in `0007.cls`."""
    root.mkdir(parents=True, exist_ok=True)
    each = -(-len(made) // shards)
    for shard in range(shards):
        with tarfile.open(root / f"shard-{shard:03d}.tar", "w") as tar:
            for sample in made[shard * each : (shard + 1) * each]:
                stem, _, suffix = Path(sample.name).name.partition(".")
                add(tar, f"{stem}.{suffix}", sample.data)
                add(tar, f"{stem}.cls", str(sample.label).encode())
    return str(root)


def parquet_table(made: list[Sample], **columns: Any) -> pa.Table:
    """The Hugging Face image convention."""
    image = pa.array(
        [{"bytes": sample.data, "path": Path(sample.name).name} for sample in made],
        type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    return pa.table({"image": image, "label": pa.array([sample.label for sample in made], pa.int64()), **columns})


def write_parquet(root: Path, made: list[Sample], files: int = 2, row_group_size: int = 4) -> str:
    root.mkdir(parents=True, exist_ok=True)
    each = -(-len(made) // files)
    for number in range(files):
        part = made[number * each : (number + 1) * each]
        file = root / f"train-{number:05d}-of-{files:05d}.parquet"
        pq.write_table(parquet_table(part), file, row_group_size=row_group_size)
    return str(root)


WRITERS = {"folder": write_folder, "tar": write_tars, "parquet": write_parquet}


def tar_of(root: Path, *members: tuple[str, bytes]) -> Path:
    """A folder with one tar of these members."""
    root.mkdir(exist_ok=True)
    with tarfile.open(root / "a.tar", "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return root


# --- opened -----------------------------------------------------------------------------------------------------------

SIZE = (16, 16)


def dataset(uri: Any, **fields: Any) -> DatasetSpec:
    """Read where it lies unless told otherwise."""
    return DatasetSpec.model_validate({"uri": str(uri), "cache": "none", **fields})


def place(tmp_path: Path, threads: int = 1) -> DatasetContext:
    return DatasetContext(Cache(tmp_path / "cache"), threads, Agreement(1), 0)


def opened(uri: Any, tmp_path: Path, channels: int = 3, **fields: Any) -> Images:
    """The readable images of a dataset, however many are not."""
    fields = {"max_bad_fraction": 1.0, **fields}
    return open_images(dataset(uri, **fields), channels, SIZE, place(tmp_path))


def class_names(images: Images) -> list[str | None]:
    """The class of each image, by name; None for an image without a label."""
    return [images.labels.classes[label] if label >= 0 else None for label in images.labels.values]


def fill(root: Path, *names: str) -> Path:
    """Tiny images of these names, no two alike."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number * 7 % 256, number // 36, 5)).save(root / name)
    return root
