"""What describes the files of a job that computes features, for trainer and service alike."""

from __future__ import annotations

from typing import Final, Literal

from trainer.protocol.evaluation import Evaluated, EvaluatedImages
from trainer.protocol.message import Message
from trainer.protocol.names import EMBEDDINGS
from trainer.spec.evaluate import Pooling

SCHEMA: Final = f"{EMBEDDINGS}/schema.json"
"""The description's path in the run's artifact folder: JSON of `Embeddings`. It is written when all files are there."""
METADATA: Final = b"rcmae"
"""The key of each file's metadata whose value is the same JSON."""
KEY, LABEL, FEATURES, PATCH_TOKENS = "key", "label", "features", "patch_tokens"
"""Columns: the image's name in the dataset; its class's name, null without one; its features; its patch tokens."""


class Embeddings(Message):
    """Features of a dataset's images, and everything that has to be the same for two of them to be compared."""

    backbone: Evaluated
    """The network."""
    weights: str
    """sha256 over the encoder's tensors."""
    dataset: EvaluatedImages
    """The images, in whose order the rows are."""
    labels: int
    """Images with a label."""
    pooling: Pooling
    layer: int
    """The block whose tokens are used, from 1."""
    precision: Literal["fp32", "bf16"]
    """`fp32` or `bf16`, of the network."""
    mean: tuple[float, ...]
    """Of each channel, for values in 0..1: pixels are normalised by it."""
    std: tuple[float, ...]
    value_range: str
    """Pixel values that become black and white, by their type."""
    dtype: Literal["float32", "float16"]
    """Of the features."""
    width: int
    """Values of an image's features."""
    patch_tokens: tuple[int, int] | None
    """Patches (row by row) and width of an image's patch tokens, which a row has one after the other; null without."""
    rows_per_file: int
    files: int
    """`part-00000.parquet` and so on: file i has the images from i * rows_per_file on."""


def part_file(number: int) -> str:
    """Path of a file in the run's artifact folder."""
    return f"{EMBEDDINGS}/part-{number:05d}.parquet"
