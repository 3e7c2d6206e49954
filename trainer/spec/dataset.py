"""The dataset section of a spec."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Final, Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from trainer.spec.base import Problem, SpecModel, refuse
from trainer.spec.common import Auto
from trainer.spec.masking import credentials_in, masked

DIGITS: Final = "builtin://digits"
"""Scikit-learn's handwritten digits, labelled."""
DIGITS_IMAGES: Final = 1797
MAX_CHANNELS: Final = 64
"""The most channels (bands) of an image."""
WILDCARDS: Final = "*?[{"
"""Characters that make the last part of a URI a pattern, unless a file or folder has exactly that name."""

DIGITS_TITLE: Final = "scikit-learn's digits"
UNTOLD: Final = frozenset({
    "data", "dataset", "datasets", "image", "images", "img", "imgs", "shard", "shards", "test", "train", "training",
    "unlabeled", "unlabelled", "val", "valid", "validation",
})  # fmt: skip
"""Names of folders and files that do not tell which dataset it is."""

_BUCKET: Final = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9._-]{1,254}$")
_ARCHIVE_ENDING: Final = re.compile(r"(\.(tar|tgz|gz|zst|parquet))+$")
_NUMBER: Final = re.compile(r"[-_.]?\d+")
_ENCODED: Final = re.compile(r"%(?:2e|2f|5c|00)", re.IGNORECASE)


Pattern = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]+$")]
Column = Annotated[str, Field(min_length=1, max_length=200)]
Title = Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._/()+,'&-]*$")]
PixelValue = Annotated[float, Field(ge=-sys.float_info.max, le=sys.float_info.max)]
"""Images of 64-bit floats may hold any finite number."""
ValueRange = tuple[PixelValue, PixelValue]


class DatasetSpec(SpecModel):
    """Where the images are, which of them are used, how they are read, and how they are cached."""

    uri: str = Field(examples=["/data/photos", "s3://datasets/cifar10/train-*.parquet", DIGITS])
    """A folder of images (nested or flat), of tar shards or of Parquet files, or one such file: an absolute path,
    `file:///path` or `s3://bucket/path`. The last part may be a pattern: `*`, `?`, `[0-9]`, `{000..127}`, `{a,b}`. Or
    `builtin://digits`. The environment of the workers holds S3's endpoint and credentials. A service may restrict where
    datasets are."""
    name: Title | None = Field(None, examples=["CIFAR-10", "ILSVRC/imagenet-1k"])
    """What the dataset is called in the model card of a backbone trained on it. The card never has the URI. Null: the
    last part of the URI that is not a pattern, a bucket, or a word such as `train` or `images`."""
    format: Literal["auto", "folder", "tar", "parquet"] = "auto"
    """`folder`: image files; `tar`: WebDataset shards; `parquet`: the Hugging Face image convention; `auto`: chosen by
    the files' names."""
    include: tuple[Pattern, ...] = ()
    """Patterns of the images to use, for example `[train/, "*.png"]`; empty: all. A pattern is compared with the path
    of the image below the dataset, or in its shard, and with the folders in it; without a slash also with each name
    alone. `**` matches any folders. In Parquet, patterns are compared with the names of the files."""
    exclude: tuple[Pattern, ...] = ()
    """Patterns of images to leave out, for example `["*_mask.png", "@eaDir"]`; written as in `include`."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the images to use, chosen by a hash of their names: a smaller share is part of a larger one."""
    label_column: Column | None = None
    """Column of the labels in Parquet files, `metadata.csv` or `metadata.jsonl`, or field of the `.json` members in tar
    shards; null: the first one with a common name such as `label`, and in shards `.cls` members."""
    image_column: Column | None = None
    """Column of the images in Parquet files; null: the first one with a common name such as `image`, or the only
    one."""
    value_range: ValueRange | Auto = "auto"
    """Pixel values that become black and white, [least, greatest], for all images alike. `auto`: 0 to 255 for images of
    8 bits; for deeper ones the range of the bits that the whole dataset uses; for floating-point ones 0 to 1 or 0 to
    255 if they fill that; or else, and for signed ones, the least and greatest value of the whole dataset."""
    cache: Literal["auto", "ram", "disk", "none"] = "auto"
    """`ram`: decoded once per node and mapped into its workers' memory; `disk`: files copied to each node once; `none`:
    read from their own storage in each epoch; `auto`: `disk` for remote files, and `ram` if the images fit into a
    quarter of the free memory."""
    max_bad_fraction: float = Field(0.1, ge=0, le=1)
    """Share of the images that may be unreadable, or of a kind that cannot be read: they are left out and named in the
    log. More end the job."""

    @property
    def selection(self) -> tuple[object, ...]:
        """What decides which images are used: specs with equal ones use the same."""
        return self.uri, self.format, self.include, self.exclude, self.fraction, self.image_column

    @property
    def title(self) -> str | None:
        """What people call the dataset; None if neither the spec nor the URI says."""
        if self.name or self.uri == DIGITS:
            return self.name or DIGITS_TITLE
        parts = _parts(self.uri)[2:]  # without the scheme, and the bucket or the root
        if parts and set(WILDCARDS) & set(parts[-1]):
            parts = parts[:-1]
        stems = [_ARCHIVE_ENDING.sub("", part) for part in parts]
        telling = [stem for stem in stems if _NUMBER.split(stem.lower())[0] not in UNTOLD]
        return next(reversed(telling or stems), None)

    @field_validator("uri")
    @classmethod
    def _readable(cls, uri: str) -> str:
        if uri == DIGITS:
            return uri
        if uri.startswith("builtin://"):
            raise ValueError(f"there is one built-in dataset: {DIGITS}")
        return location(uri, f"give /path, file:///path, s3://bucket/path or {DIGITS}", ("/data/photos", "cifar10"))

    @field_validator("value_range")
    @classmethod
    def _range_rises(cls, value: ValueRange | Auto) -> ValueRange | Auto:
        if value != "auto" and value[0] >= value[1]:
            raise ValueError("the first number must be below the second: write [least, greatest]")
        return value

    @model_validator(mode="after")
    def _builtin_is_as_it_is(self) -> Self:
        if self.uri == DIGITS:
            for name in ("format", "cache", "include", "exclude", "label_column", "image_column", "value_range"):
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    raise refuse(name, f"must be left out: {DIGITS} is created in memory", value)
        return self


def location(uri: str, advice: str, examples: tuple[str, str]) -> str:
    """A path or URI as specs name them, without a slash at its end; raises `ValueError` if jobs cannot read it.

    ``advice`` says what else to write instead of another scheme; ``examples`` are a path, and a name in a bucket.
    """
    credentials = credentials_in(uri)
    if credentials:
        raise ValueError(
            f"must not hold credentials, but has {credentials}: set them in the environment of the workers"
        )
    scheme, separator, rest = uri.partition("://") if "://" in uri else ("file", "://", uri)
    if scheme not in {"file", "s3"}:
        raise ValueError(f"{scheme}:// cannot be read: {advice}")
    if "\x00" in rest or "*" in rest.rstrip("/").rpartition("/")[0]:
        raise ValueError("may be a pattern only in the last part of the path, and have no zero byte")
    if ".." in rest.split("/") or _ENCODED.search(rest):
        raise ValueError("write the path as it is, without .. and without encoded dots and slashes")
    if scheme == "file" and not rest.startswith("/"):
        raise ValueError(f"must be an absolute path, for example {examples[0]} or file://{examples[0]}")
    bucket = rest.partition("/")[0]
    if scheme == "s3" and ("@" in bucket or ":" in bucket):
        raise ValueError("must not hold credentials or ports: set them in the environment of the workers")
    if scheme == "s3" and not _BUCKET.match(bucket):
        raise ValueError(f"must name a bucket, for example s3://datasets/{examples[1]}")
    return f"{scheme}{separator}{rest.rstrip('/') or '/'}"


class Located(Protocol):
    """A section of a spec that names files which a job reads."""

    @property
    def uri(self) -> str: ...


def misplaced(section: Located, field: str, roots: Sequence[str] | None) -> Problem | None:
    """The problem if what a section names is outside all roots; None if it is not. ``field`` is the section's path."""
    if roots is None or any(_is_below(section.uri, root) for root in roots):
        return None
    text = f"must be below one of the locations that jobs may read: {', '.join(roots)}"
    return Problem(f"{field}.uri", f"/{field.replace('.', '/')}/uri", section.uri, text)


def check_root(root: str) -> str:
    """The root, if it is a valid location for datasets; raises `ValueError` if it is not."""
    scheme, *parts = _parts(root)
    valid = {
        "file": root.partition("://")[2].startswith("/") or root.startswith("/"),
        "s3": bool(parts and _BUCKET.match(parts[0])),
        "builtin": root in {"builtin://", DIGITS},
    }
    if not valid.get(scheme) or ".." in parts or "*" in root or _ENCODED.search(root):
        raise ValueError(
            f"{masked(root)} is not a location: write /folder, file:///folder, s3://bucket/prefix or builtin://"
        )
    return root


def _is_below(uri: str, root: str) -> bool:
    """Compares whole parts of the path: /data2 is not below /data."""
    parts, root_parts = _parts(uri), _parts(root)
    return parts[: len(root_parts)] == root_parts and ".." not in parts


def _parts(uri: str) -> tuple[str, ...]:
    """The scheme and the parts of the path, which for a local path are normalised."""
    scheme, _, rest = uri.partition("://") if "://" in uri else ("file", "", uri)
    if scheme == "file":
        return (scheme, *PurePosixPath(rest).parts)
    return (scheme, *rest.rstrip("/").split("/")) if rest.rstrip("/") else (scheme,)
