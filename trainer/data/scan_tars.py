"""Scanning tar shards: the images in them, with labels from `.cls` or `.json` members."""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from trainer.data.columns import Unusable, labels_of_values, unusable_labels
from trainer.data.labels import Labels
from trainer.data.notices import Notice
from trainer.data.reading import DatasetFile, shown_name
from trainer.data.sources import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES, Files, is_hidden, suffix_of
from trainer.data.table import Table
from trainer.errors import DataError

READ_AHEAD: Final = 4 * 2**20
LABEL_BYTES: Final = 4096
"""The longest text of a `.cls` member that is read."""
JSON_BYTES: Final = 2**20
"""The longest `.json` member that is read."""
JSON_FIELDS: Final = ("label", "cls")
LINKS_FOLLOWED: Final = 40
"""From one link to the next, as Linux does."""
TAR_ERRORS: Final = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError)
"""What tarfile raises for damaged files."""


def scan_tars(files: Files, wanted_label: str | None) -> Table:
    """The images in tar shards. ``wanted_label`` is the field of `.json` members with the label, if it was named."""
    names: list[str] = []
    locations: list[tuple[int, int, int]] = []
    values: list[_Value | None] = []
    leading_nowhere: list[str] = []
    passed_over: Counter[str] = Counter()
    for number, shard in enumerate(files.names):
        prefix = f"{shard}/" if len(files.names) > 1 else ""
        try:
            with files.open_file(number, block_size=READ_AHEAD, cache_type="readahead") as file:
                found = _read_shard(file)
        except TAR_ERRORS as error:
            raise DataError(
                f"dataset.uri: the shard {shard} of {files.uri} is damaged or not a tar file: {error}; create it again"
            ) from error
        labels = _ShardLabels(shard, wanted_label)
        for member in found.labels:
            labels.add(member.name, member.content)
        names += [f"{prefix}{image.name}" for image in found.images]
        locations += [(number, image.offset, image.size) for image in found.images]
        values += [labels.of(image.name) for image in found.images]
        leading_nowhere += [f"{prefix}{link}" for link in found.leading_nowhere]
        passed_over += found.passed_over
    if wanted_label and not any(values):
        raise DataError(
            f"dataset.label_column: no .json member of {files.uri} has a field {wanted_label!r}: remove it to take "
            "labels from .cls members or folders"
        )
    labels_found, notices = _labels(values, wanted_label)
    columns = np.array(locations, dtype=np.int64).reshape(-1, 3)
    return Table(
        names,
        columns[:, 0].astype(np.int32),
        columns[:, 1],
        columns[:, 2],
        labels_found,
        (*notices, *_links_notice(leading_nowhere)),
        dict(passed_over),
    )


def _links_notice(leading_nowhere: Sequence[str]) -> list[Notice]:
    if not leading_nowhere:
        return []
    text = (
        f"{len(leading_nowhere)} links in the shards lead to no image or label of their shard and are passed over; the "
        f"first is {leading_nowhere[0]}. Create the shards with the files that links lead to: tar --dereference"
    )
    return [Notice("links_passed_over", text)]


# --- members ----------------------------------------------------------------------------------------------------------


class _Member(NamedTuple):
    """An image, or a label with its content."""

    name: str
    """Normalised: `./cat/1.jpg` and `/cat/1.jpg` are `cat/1.jpg`."""
    offset: int
    size: int
    content: bytes = b""


@dataclass
class _Shard:
    """What is in a shard, in the order of its members."""

    images: list[_Member] = field(default_factory=list)
    labels: list[_Member] = field(default_factory=list)
    leading_nowhere: list[str] = field(default_factory=list)
    """Links that lead to no image or label of the shard."""
    passed_over: Counter[str] = field(default_factory=Counter)
    """Suffixes of other files."""


def _read_shard(file: DatasetFile) -> _Shard:
    """The members of a shard, with those that links lead to. Raises one of `TAR_ERRORS` for a damaged file."""
    shard = _Shard()
    entries: list[_Member | tuple[str, str]] = []
    for tar, member in _headers(file):
        name = _normal(member.name)
        if is_hidden(name):
            continue
        if member.islnk():
            entries.append((name, _normal(member.linkname)))
        elif member.issym():
            entries.append((name, _normal(posixpath.join(posixpath.dirname(name), member.linkname))))
        elif not member.isreg() or member.issparse():
            continue
        elif _is_image(name):
            entries.append(_Member(name, member.offset_data, member.size))
        elif _is_label(name):
            content = tar.extractfile(member) if member.size <= _LONGEST[suffix_of(name)] else None
            if content:
                entries.append(_Member(name, member.offset_data, member.size, content.read()))
        else:
            shard.passed_over[suffix_of(name) or "no suffix"] += 1
    for found in _linked(entries, shard.leading_nowhere):
        (shard.images if _is_image(found.name) else shard.labels).append(found)
    return shard


def _linked(entries: Sequence[_Member | tuple[str, str]], leading_nowhere: list[str]) -> Iterator[_Member]:
    """The members, where links stand for what they lead to; ``leading_nowhere`` takes the names of the others.

    A link is a pair of names, its own and its target's.
    """
    members = {entry.name: entry for entry in entries if isinstance(entry, _Member)}
    links = dict(entry for entry in entries if not isinstance(entry, _Member))
    for entry in entries:
        if isinstance(entry, _Member):
            yield entry
            continue
        name, target = entry
        if not (_is_image(name) or _is_label(name)):
            continue
        for _ in range(LINKS_FOLLOWED):
            if target in members or target not in links:
                break
            target = links[target]
        if target in members and _is_image(target) == _is_image(name):
            yield members[target]._replace(name=name)
        else:
            leading_nowhere.append(name)


def _headers(file: DatasetFile) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The header of each member, each further into the file than the one before."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        previous_offset = -1
        for member in tar:
            if member.size < 0 or member.offset <= previous_offset:  # it would be read in an endless loop
                raise tarfile.ReadError(f"the header of {shown_name(member.name)} points backwards")
            previous_offset = member.offset
            if member.isreg() and member.offset_data + member.size > end:
                raise tarfile.ReadError(f"it ends inside {shown_name(member.name)}")
            yield tar, member
        # tarfile treats a damaged header as the end: after the last member there must be zeros or nothing.
        file.seek(tar.offset)
        if any(file.read(tarfile.BLOCKSIZE)):
            raise tarfile.ReadError(f"no header at byte {tar.offset} of {end}")


def _normal(name: str) -> str:
    return shown_name(posixpath.normpath(name).lstrip("/"))


def _is_image(name: str) -> bool:
    return suffix_of(name) in IMAGE_SUFFIXES or suffix_of(name) in UNREADABLE_SUFFIXES


def _is_label(name: str) -> bool:
    return suffix_of(name) in _LONGEST


_LONGEST: Final = {".cls": LABEL_BYTES, ".json": JSON_BYTES}


# --- labels -----------------------------------------------------------------------------------------------------------

_Value = tuple[str, Any]
"""Where a label comes from, `cls` or `json`, and the label."""


class _ShardLabels:
    """The labels in one shard, by the samples that they belong to.

    The members of a sample share their path up to the last dot: `scan-1.000.cls` belongs to `scan-1.000.png`. A label
    that has no other dot belongs to all images of its name up to the first dot: `a.cls` to `a.left.png`.
    """

    def __init__(self, shard: str, wanted: str | None) -> None:
        """``wanted`` is the field of `.json` members that holds the label, if the spec names one."""
        self._shard = shard
        self._fields = (wanted,) if wanted else JSON_FIELDS
        self._sources = {"json"} if wanted else {"cls", "json"}
        self._by_stem: defaultdict[str, list[_Value]] = defaultdict(list)

    def add(self, member: str, content: bytes) -> None:
        """A `.cls` or `.json` member; raises `DataError` if its label is not UTF-8."""
        source = suffix_of(member)[1:]
        if source not in self._sources:
            return
        text = content.decode("utf-8-sig", errors="surrogateescape").strip()
        value = _field(text, self._fields) if source == "json" else text
        if value is None:
            return
        if isinstance(value, str) and shown_name(value) != value:
            raise DataError(
                f"dataset.uri: the label in {member} of the shard {self._shard} is not valid UTF-8: create the shard "
                "again with its labels in UTF-8"
            )
        self._by_stem[_stem(member)].append((source, value))

    def of(self, member: str) -> _Value | None:
        """The label of an image; raises `DataError` if there are two."""
        found = self._by_stem.get(_stem(member)) or self._by_stem.get(_first_dot(member), [])
        # Many samples of img2dataset have both: `.cls` members are meant for training.
        chosen = [value for value in found if value[0] == "cls"] or found
        if len({str(value) for _, value in chosen}) > 1:
            shown = " and ".join(repr(value) for _, value in chosen[:2])
            raise DataError(
                f"dataset.uri: {member} in the shard {self._shard} has two labels, {shown}: give each sample a name of "
                "its own"
            )
        return chosen[0] if chosen else None


def _stem(member: str) -> str:
    return posixpath.splitext(member)[0]


def _first_dot(member: str) -> str:
    folder, _, last = member.rpartition("/")
    return f"{folder}/{last.split('.', 1)[0]}".removeprefix("/")


def _field(text: str, fields: Sequence[str]) -> Any:
    """The first of these fields that a sample's JSON has a value in; None if there is none, or no JSON object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    return next((content[name] for name in fields if content.get(name) is not None), None)


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
