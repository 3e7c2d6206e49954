"""Images a second: decode and random crop on one core against Pillow as torchvision's ImageFolder does it; the loader.

``python tests/benchmarks/data.py --photos DIR`` (or ``RCMAE_BENCH_PHOTOS=DIR``): a folder of tars of photographs.
Without one, photographs are made up, which says less. Prints a table of one run, in Markdown; only the ratios mean
anything on another machine.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import PIL
import simplejpeg
from PIL import Image

from trainer.agreement import Agreement
from trainer.data.augment import crop_boxes, flips
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_images
from trainer.data.decode import decode, decode_crop, decodes_whole
from trainer.data.images import Images
from trainer.data.loader import Loader
from trainer.spec.dataset import DatasetSpec
from trainer.spec.pretrain import PretrainSpec

sys.path.append(str(Path(__file__).parents[1]))
from s3_server import s3_server

SIZE = (224, 224)
CROP_SCALE = (0.2, 1.0)
PACKED_SIDE, PACKED_QUALITY = 256, 90
ROUNDS, LOADER_ROUNDS = 7, 3

Box = tuple[int, int, int, int]


class Photographs:
    """Encoded photographs with the boxes and flips that both ways cut out of them."""

    def __init__(self, files: list[bytes], shapes: list[tuple[int, int]]) -> None:
        self.files, self.shapes = files, shapes
        samples = np.arange(len(files))
        heights, widths = (np.array([shape[axis] for shape in shapes]) for axis in (0, 1))
        self.boxes: list[Box] = [
            (left, top, right, bottom)
            for left, top, right, bottom in crop_boxes(0, 0, samples, heights, widths, CROP_SCALE).tolist()
        ]
        self.flips: list[bool] = flips(0, 0, samples).tolist()

    def __str__(self) -> str:
        height, width = np.mean(self.shapes, axis=0)
        whole = np.mean([decodes_whole(*pair, SIZE) for pair in zip(self.files, self.shapes, strict=True)])
        return (
            f"{len(self.files)} files, {np.mean([len(file) for file in self.files]) / 1000:.0f} KB and "
            f"{width:.0f} x {height:.0f} pixels in the mean, {whole:.0%} decoded whole"
        )


def photographs(folder: Path | None, limit: int) -> list[bytes]:
    """The JPEGs of a folder's tars, or made-up ones."""
    if folder is None:
        return made_up(limit)
    files: list[bytes] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                body = tar.extractfile(member)
                if body is not None and member.name.lower().endswith((".jpg", ".jpeg")) and len(files) < limit:
                    files.append(body.read())
    if not files:
        sys.exit(f"no photographs (*.jpg in *.tar) in {folder}")
    return files


def made_up(count: int) -> list[bytes]:
    """Noise at all sizes, of the weight of photographs."""
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        pixels = rng.normal(128, 12, (375, 500, 3))
        for size in (4, 12, 40, 120):
            pixels += cv2.resize(rng.normal(0, 25, (size, size, 3)), (500, 375), interpolation=cv2.INTER_CUBIC)
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    return files


def packed(files: list[bytes]) -> list[bytes]:
    """The same with their short side at 256, as a packed data set has them."""
    smaller = []
    for data in files:
        image = Image.fromarray(decode(data, 3))
        scale = PACKED_SIDE / min(image.size)
        if scale < 1:
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=PACKED_QUALITY)
        smaller.append(file.getvalue())
    return smaller


def with_shapes(files: list[bytes]) -> Photographs:
    return Photographs(files, [decode(data, 1).shape[:2] for data in files])


def as_image_folder(photos: Photographs, number: int) -> np.ndarray:
    """Torchvision's loader, RandomResizedCrop (bicubic), RandomHorizontalFlip and the way to an array."""
    with Image.open(io.BytesIO(photos.files[number])) as image:
        crop = image.convert("RGB").crop(photos.boxes[number]).resize(SIZE[::-1], Image.Resampling.BICUBIC)
    if photos.flips[number]:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.array(crop)


def ours(photos: Photographs, number: int) -> np.ndarray:
    return decode_crop(photos.files[number], 3, photos.shapes[number], photos.boxes[number], SIZE, photos.flips[number])


def decode_alone(photos: Photographs, number: int) -> np.ndarray:
    """What no way through simplejpeg can be faster than."""
    return simplejpeg.decode_jpeg(photos.files[number])


def measure(ways: dict[str, tuple[Callable[[Photographs, int], np.ndarray], Photographs]]) -> dict[str, list[float]]:
    """Images a second of each way, round by round: the ways take turns, so that a busy moment meets them all."""
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (way, photos) in ways.items():
            began = time.perf_counter()
            for number in range(len(photos.files)):
                way(photos, number)
            speeds[name].append(len(photos.files) / (time.perf_counter() - began))
    return speeds


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor()


def say(line: str = "") -> None:
    sys.stdout.write(f"{line}\n")


def tabulate(heading: str, speeds: dict[str, list[float]], base: str) -> None:
    """Images a second of each way, and their ratios to one of them within each round."""
    say(f"\n| {heading} | images/s | to {base} | least and most of {len(speeds[base])} rounds |")
    say("|---|---|---|---|")
    for name, each in speeds.items():
        ratios = [speed / other for speed, other in zip(each, speeds[base], strict=True)]
        say(
            f"| {name} | {statistics.median(each):,.0f} | {statistics.median(ratios):.2f} | "
            f"{min(ratios):.2f} to {max(ratios):.2f} |"
        )


def decoding(folder: Path | None, limit: int) -> None:
    """The table of decoding and cropping on one core."""
    files = photographs(folder, limit)
    original, small = with_shapes(files), with_shapes(packed(files))
    say(f"Originals: {original}.  ")
    say(f"Packed at short side {PACKED_SIDE}, quality {PACKED_QUALITY}: {small}.  ")
    if folder is None:
        say("MADE-UP photographs: give --photos for real ones.  ")
    speeds = measure(
        {
            "Pillow as ImageFolder, originals": (as_image_folder, original),
            "ours, originals": (ours, original),
            "simplejpeg's decoding alone, originals": (decode_alone, original),
            "Pillow as ImageFolder, packed": (as_image_folder, small),
            "ours, packed": (ours, small),
            "simplejpeg's decoding alone, packed": (decode_alone, small),
        }
    )
    tabulate(f"way to {SIZE[1]} x {SIZE[0]}", speeds, "Pillow as ImageFolder, originals")


# --- the loader, end to end -------------------------------------------------------------------------------------------


def loading(files: list[bytes]) -> None:
    """Batches of 64 from tar shards: on a disk, in a real S3 server, staged from it, kept decoded."""
    with tempfile.TemporaryDirectory() as temporary, s3_server() as s3:
        os.environ |= s3.environment()
        folder = Path(temporary)
        local, remote = shards(folder / "shards", files), s3.bucket("benchmark")
        s3.filesystem().put(f"{local}/", f"{remote}/shards/", recursive=True)
        remote, bytes_ = f"{remote}/shards", sum(map(len, files))
        place = DatasetContext(Cache(folder / "cache"), 2, Agreement(1), 0)
        opened(local, "none", place)  # its index is made here
        began = time.perf_counter()
        staged = opened(remote, "disk", place)
        spent = time.perf_counter() - began
        say(f"\nStaging {bytes_ / 1e6:.0f} MB from S3 and indexing it took {spent:.1f} s.  ")
        places = {
            "a disk, one thread": (opened(local, "none", place), 1, 0),
            "a disk, two threads": (opened(local, "none", place), 2, 0),
            "a disk, two processes": (opened(local, "none", place), 1, 2),
            "S3, staged, two threads": (staged, 2, 0),
            "S3, not staged, two threads": (opened(remote, "none", place), 2, 0),
            "kept decoded, two threads": (opened(local, "ram", place), 2, 0),
        }
        speeds: dict[str, list[float]] = {name: [] for name in places}
        for _ in range(LOADER_ROUNDS):
            for name, setting in places.items():
                speeds[name].append(load(*setting))
    tabulate("loader, batches of 64 at 224 px", speeds, "a disk, two threads")


def shards(folder: Path, files: list[bytes], each: int = 100) -> str:
    folder.mkdir()
    for first in range(0, len(files), each):
        with tarfile.open(folder / f"{first:06d}.tar", "w") as tar:
            for number, data in enumerate(files[first : first + each], first):
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(folder)


def opened(uri: str, cache: str, place: DatasetContext) -> Images:
    dataset = DatasetSpec.model_validate({"uri": uri, "cache": cache})
    return open_images(dataset, 3, SIZE, place)


def load(images: Images, threads: int, processes: int) -> float:
    """Images a second of three epochs, without the first batch: processes have to start."""
    spec = PretrainSpec.parse(
        {"kind": "pretrain", "dataset": {"uri": "/"}, "optimization": {"global_batch_size": 64},
         "resources": {"loader_processes": processes}}
    )  # fmt: skip
    steps = 3 * (len(images) // 64)
    batches = Loader(images, np.arange(len(images)), spec, 0, 1, threads, pin=False).batches(0, steps)
    next(batches)
    began = time.perf_counter()
    made = sum(len(batch.images) for batch in batches)
    return made / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("RCMAE_BENCH_PHOTOS")
    parser.add_argument("--photos", type=Path, default=Path(default) if default else None, metavar="DIR")
    parser.add_argument("--limit", type=int, default=400, help="photographs at most")
    arguments = parser.parse_args()
    say(
        f"One thread of one process. {processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, "
        f"Pillow {PIL.__version__}, simplejpeg {simplejpeg.__version__}, OpenCV {cv2.__version__}.  "
    )
    decoding(arguments.photos, arguments.limit)
    loading(photographs(arguments.photos, arguments.limit))


if __name__ == "__main__":
    main()
