"""Scanning tar shards: the images in them, with labels from `.cls` or `.json` members."""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from trainer.data.columns import Unusable, labels_of_values, unusable_labels
from trainer.data.labels import Labels
from trainer.data.notices import Notice
from trainer.data.reading import DatasetFile
from trainer.data.sources import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES, Files, is_hidden, suffix_of
from trainer.data.table import Table
from trainer.errors import DataError

READ_AHEAD: Final = 4 * 2**20
LABEL_BYTES: Final = 4096
"""The longest text of a `.cls` member that is read."""
JSON_BYTES: Final = 2**20
"""The longest `.json` member that is read."""
JSON_FIELDS: Final = ("label", "cls")


def scan_tars(files: Files, wanted_label: str | None) -> Table:
    """The images in tar shards. ``wanted_label`` is the field of `.json` members with the label, if it was named."""
    members: list[str] = []
    locations: list[tuple[int, int, int]] = []
    values: list[_Value | None] = []
    for number, shard in enumerate(files.names):
        labels = _ShardLabels(shard, wanted_label)
        first = len(members)
        try:
            with files.open_file(number, block_size=READ_AHEAD, cache_type="readahead") as file:
                for member, offset, size, text in _members(file):
                    if text is not None:
                        labels.add(member, text)
                    else:
                        members.append(member)
                        locations.append((number, offset, size))
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DataError(
                f"dataset.uri: the shard {shard} of {files.uri} is damaged or not a tar file: {error}; create it again"
            ) from error
        values += [labels.of(member) for member in members[first:]]
    if wanted_label and not any(values):
        raise DataError(
            f"dataset.label_column: no .json member of {files.uri} has a field {wanted_label!r}: remove it to take "
            "labels from .cls members or folders"
        )
    labels_found, notices = _labels(values, wanted_label)
    names = members
    if len(files.names) > 1:
        names = [f"{files.names[number]}/{member}" for member, (number, _, _) in zip(members, locations, strict=True)]
    columns = np.array(locations, dtype=np.int64).reshape(-1, 3)
    return Table(
        names,
        columns[:, 0].astype(np.int32),
        columns[:, 1],
        columns[:, 2],
        labels_found,
        tuple(notices),
    )


def _members(file: DatasetFile) -> Iterator[tuple[str, int, int, str | None]]:
    """Name, offset and size of each image in a tar, and the text of each label; everything else is skipped.

    Raises `tarfile.TarError` for a damaged file.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        previous_offset = -1
        for member in tar:
            if member.size < 0 or member.offset <= previous_offset:  # it would be read in an endless loop
                raise tarfile.ReadError(f"the header of {member.name} points backwards")
            previous_offset = member.offset
            if not member.isreg() or member.issparse() or is_hidden(member.name):
                continue
            if member.offset_data + member.size > end:
                raise tarfile.ReadError(f"it ends inside {member.name}")
            suffix = suffix_of(member.name)
            if suffix in IMAGE_SUFFIXES or suffix in UNREADABLE_SUFFIXES:
                yield member.name, member.offset_data, member.size, None
            elif suffix in _LONGEST and member.size <= _LONGEST[suffix] and (content := tar.extractfile(member)):
                yield member.name, 0, 0, content.read().decode(errors="replace").strip()
        # tarfile treats a damaged header as the end: after the last member there must be zeros or nothing.
        file.seek(tar.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no header at byte {tar.offset} of {end}")


_LONGEST: Final = {".cls": LABEL_BYTES, ".json": JSON_BYTES}

_Value = tuple[str, Any]
"""Where a label comes from, `cls` or `json`, and the label."""


class _ShardLabels:
    """The labels in one shard, by the samples that they belong to.

    The members of a sample share their path up to the last dot, or in other shards up to the first dot of its last
    part. Both are kept, because `scan-1.000.cls` belongs to `scan-1.000.png`, and `a.cls` to `a.seg.png`.
    """

    def __init__(self, shard: str, wanted: str | None) -> None:
        """``wanted`` is the field of `.json` members that holds the label, if the spec names one."""
        self._shard = shard
        self._fields = (wanted,) if wanted else JSON_FIELDS
        self._sources = {"json"} if wanted else {"cls", "json"}
        self._by_key: defaultdict[str, list[_Value]] = defaultdict(list)

    def add(self, member: str, text: str) -> None:
        """A `.cls` or `.json` member with this content."""
        source = suffix_of(member)[1:]
        value = _field(text, self._fields) if source == "json" else text
        if value is None or source not in self._sources:
            return
        for key in {_stem(member), _first_dot(member)}:
            self._by_key[key].append((source, value))

    def of(self, member: str) -> _Value | None:
        """The label of an image; raises `DataError` if there are two."""
        found = self._by_key.get(_stem(member)) or self._by_key.get(_first_dot(member), [])
        # Many samples of img2dataset have both: `.cls` members are meant for training.
        chosen = [value for value in found if value[0] == "cls"] or found
        if len({str(value) for _, value in chosen}) > 1:
            shown = " and ".join(repr(value) for _, value in chosen[:2])
            raise DataError(
                f"dataset.uri: {member} in the shard {self._shard} has two labels, {shown}: give each sample a name of "
                "its own up to the first dot"
            )
        return chosen[0] if chosen else None


def _stem(member: str) -> str:
    return posixpath.splitext(member)[0]


def _first_dot(member: str) -> str:
    folder, _, last = member.rpartition("/")
    return f"{folder}/{last.split('.', 1)[0]}".removeprefix("/")


def _field(text: str, fields: Sequence[str]) -> Any:
    """The first of these fields that a sample's JSON has; None if it has none, or is no JSON object."""
    try:
        content = json.loads(text)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    return next((content[field] for field in fields if field in content), None)


def _labels(values: Sequence[_Value | None], wanted: str | None) -> tuple[Labels, list[Notice]]:
    """Labels of `.cls` members if there are any, or else of `.json` members."""
    sources = {value[0] for value in values if value is not None}
    if not sources:
        return Labels.none(len(values)), []
    source = min(sources)
    try:
        return labels_of_values([value[1] if value and value[0] == source else None for value in values], source)
    except Unusable as error:
        return unusable_labels(len(values), wanted or f".{source}", error, required=bool(wanted))
