"""What the inspection of a dataset has found, for trainer and service alike."""

from __future__ import annotations

from typing import Any, Final

from trainer.protocol.message import Message

INSPECTION: Final = "inspection.json"
"""The result's path in the run's artifact folder."""
CLASSES_LISTED: Final = 1000
"""The most classes that a result lists, the largest first."""


class Quartiles(Message):
    """A distribution, in pixels."""

    least: int
    lower_quartile: int
    median: int
    upper_quartile: int
    greatest: int


class Sizes(Message):
    """Heights and widths of the upright images."""

    height: Quartiles
    width: Quartiles


class Unread(Message):
    """Images that cannot be read for the same reason."""

    count: int
    first: str
    """The name of the first of them."""


class SplitFound(Message):
    """Images whose folder or file is named like a split."""

    uri: str
    images: int
    include: tuple[str, ...] = ()
    """Patterns of `dataset.include` that choose the split, where no URI is the split alone."""


class Warned(Message):
    """One thing that the dataset's owner should know."""

    code: str
    """Stable, for programs."""
    message: str


class Inspection(Message):
    """A dataset as training would see it."""

    images: int
    """Images that the spec uses, unreadable ones included."""
    inspected: int
    """How many of them the figures below are about: all, or a sample."""
    decoded: int
    """How many had to be decoded for it: what earlier jobs have found out is kept on the node."""
    bytes: int
    """Of the encoded images inspected."""
    formats: dict[str, int]
    """Readable images by format, for example `JPEG`."""
    sizes: Sizes | None
    """Null if no image can be read."""
    channels: dict[int, int]
    """Readable images by their number of channels."""
    fitting_channels: dict[int, int]
    """How many readable images can be read with `model.in_chans` set to each number that fits any of them."""
    bits: dict[int, int]
    """Readable images by the bits of a value."""
    value_range: tuple[float, float] | None
    """The least and the greatest value of all readable images."""
    scale: dict[str, tuple[float, float]]
    """Values that become black and white, by the type of the values."""
    classes: dict[str, int]
    """Images by class, at most the thousand largest."""
    class_count: int
    labels_from: str
    """`folders`, `column:NAME`, `cls`, `json`, `metadata.csv`, `metadata.jsonl`, `builtin` or `none`."""
    unreadable: dict[str, Unread]
    """By reason."""
    passed_over: dict[str, int]
    """Files, and members of shards, that are no images, by suffix."""
    duplicates: int
    """Readable images that are exact copies of others."""
    splits: dict[str, SplitFound]
    """`train`, `validation` and `test`, where folders or files are named like them, and other folders beside those."""
    images_per_s_per_core: float | None
    """How fast this node decodes the images whole; null if none had to be decoded."""
    fingerprint: str | None
    """Identity of the data, as training computes it with the proposed channels; null for a sample."""
    warnings: list[Warned]
    proposed: dict[str, Any]
    """A piece of a pretraining spec that fits the data."""
