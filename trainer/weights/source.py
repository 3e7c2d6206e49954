"""The files of weights from elsewhere: which there are, and the tensors that they hold, under their own names.

Nothing is unpickled except tensors in plain containers and the arguments of MAE's code, an `argparse.Namespace`
(`torch.load(weights_only=True)`).
"""

from __future__ import annotations

import argparse
import json
import pickle
import posixpath
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainer.errors import WeightsRefused
from trainer.storage import Store, sha256_of

FILE_ENDINGS: Final = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
"""A path that ends so is one file of weights; any other is a folder."""
CONFIG, PROCESSOR, CARD = "config.json", "preprocessor_config.json", "README.md"
WEIGHTS: Final = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""The weights of a folder: the first of these that is there."""
MOST_TEXT_BYTES: Final = 2**24
MOST_WEIGHT_BYTES: Final = 2**36

Content = dict[str, Any]
"""What one file of weights holds: tensors by name, possibly within dictionaries, possibly beside something else."""


@dataclass(frozen=True)
class Source:
    """The files of one network, or of a student and its teacher."""

    place: str
    """The folder or file, for messages."""
    config: Mapping[str, Any] | None
    """``config.json``; None for a single file."""
    processor: Mapping[str, Any] | None
    """``preprocessor_config.json``, if there is one."""
    license: str | None
    """What the front matter of the folder's card says."""
    content: Content
    file_of: Mapping[str, str]
    """The name of the file that holds each entry of ``content``."""
    sha256: Mapping[str, str]
    """By the name of each file that was read."""

    def label(self, name: str) -> str:
        """How messages call a tensor: its file, or the only one, or the folder; and its name there."""
        files = set(self.file_of.values())
        return f"{self.file_of.get(name, next(iter(files)) if len(files) == 1 else self.place)}: {name}"


def read_source(store: Store, name: str) -> Source:
    """Read the folder or file ``name`` of a store, or the store's own folder if it is empty.

    Raises `WeightsRefused` if files are missing, damaged or too large, and `StorageError` if they cannot be read.
    """
    names = store.names(name)
    if not names and name.endswith(FILE_ENDINGS):
        return _read_file(store, name)
    if not names and name and store.exists(name):
        raise WeightsRefused(
            f"{_place(store, name)}: is a file whose name does not end in {', '.join(FILE_ENDINGS)}: name a file of "
            "weights, or a folder of timm or transformers"
        )
    if not names:
        raise WeightsRefused(f"{_place(store, name)}: the folder is empty or does not exist: correct the path")
    if CONFIG not in names:
        raise WeightsRefused(
            f"{_place(store, name)}: there is no {CONFIG}: name a folder of timm or transformers, or a file of weights "
            f"({', '.join(FILE_ENDINGS)})"
        )
    return _read(store, name, _files_of_folder(store, name, names), name)


def _read_file(store: Store, name: str) -> Source:
    """A single file, which must not be that of a folder whose configuration says more than tensors can."""
    folder, file = posixpath.split(name)
    if CONFIG in store.names(folder):
        raise WeightsRefused(
            f"{_place(store, name)}: lies in a folder with a {CONFIG}, which says what tensors cannot, such as the "
            "activation: name the folder"
        )
    return _read(store, folder, (file,), name)


def _files_of_folder(store: Store, folder: str, names: list[str]) -> tuple[str, ...]:
    """The files to read: weights, whole or in parts, and the texts beside them."""
    weights = next((file for file in WEIGHTS if file in names), None)
    if weights is None:
        raise WeightsRefused(f"{_place(store, folder)}: there are no weights: it needs one of {', '.join(WEIGHTS)}")
    texts = tuple(text for text in (CONFIG, PROCESSOR, CARD) if text in names)
    if not weights.endswith(".index.json"):
        return (*texts, weights)
    index = posixpath.join(folder, weights)
    _check_size(store, index, MOST_TEXT_BYTES)
    parts = sorted(set(_weight_map(store.read(index), _place(store, index)).values()))
    missing = [part for part in parts if part not in names]
    if missing:
        raise WeightsRefused(f"{_place(store, index)}: lists {missing[0]}, which is not in the folder: copy all parts")
    return (*texts, weights, *parts)


def _weight_map(data: bytes, place: str) -> dict[str, str]:
    found = _json(data, place).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(part, str) for part in found.values()):
        raise WeightsRefused(f"{place}: has no weight_map of names and files: copy the file again")
    return found


def _read(store: Store, folder: str, files: tuple[str, ...], name: str) -> Source:
    place = _place(store, name)
    for file in files:
        limit = MOST_WEIGHT_BYTES if file.endswith(FILE_ENDINGS) else MOST_TEXT_BYTES
        _check_size(store, posixpath.join(folder, file), limit)
    with store.local_copy(folder, only=files) as directory:
        texts = {file: (directory / file).read_bytes() for file in (CONFIG, PROCESSOR, CARD) if file in files}
        content, file_of = _content(directory, [file for file in files if file.endswith(FILE_ENDINGS)])
        index = next((file for file in files if file.endswith(".index.json")), None)
        if index:
            _check_index(_weight_map((directory / index).read_bytes(), index), file_of, index)
        sha256 = {file: sha256_of(directory / file) for file in files}
    return Source(
        place=place,
        config=_json(texts[CONFIG], CONFIG) if CONFIG in texts else None,
        processor=_json(texts[PROCESSOR], PROCESSOR) if PROCESSOR in texts else None,
        license=_card_license(texts.get(CARD, b"")),
        content=content,
        file_of=file_of,
        sha256=sha256,
    )


def _content(directory: Path, files: list[str]) -> tuple[Content, dict[str, str]]:
    """What the files hold, and which of them holds each entry."""
    content: Content = {}
    file_of: dict[str, str] = {}
    for file in files:
        part = _load(directory / file)
        twice = next((name for name in part if name in content), None)
        if twice:
            raise WeightsRefused(f"{file}: {twice} is also in {file_of[twice]}: keep one of the two")
        content |= part
        file_of |= dict.fromkeys(part, file)
    return content, file_of


def _check_index(weight_map: Mapping[str, str], file_of: Mapping[str, str], index: str) -> None:
    wrong = next((name for name, part in weight_map.items() if file_of.get(name) != part), None)
    if wrong:
        raise WeightsRefused(
            f"{weight_map[wrong]}: {wrong} is missing, although {index} lists it: copy all parts again"
        )


def _load(file: Path) -> Content:
    """What one file holds. The tensors may be views of the mapped file."""
    if not file.stat().st_size:
        raise WeightsRefused(f"{file.name}: the file is empty: copy it again")
    with _damage(file.name):
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        # Files of torch before 1.6 are no ZIP archives, and cannot be mapped.
        # MAE's code saves its arguments beside the weights: a namespace is made of attributes alone, and runs no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise WeightsRefused(
            f"{file.name}: holds no tensors by name, but a {type(loaded).__name__}: save model.state_dict()"
        )
    return loaded


@contextmanager
def _damage(file: str) -> Iterator[None]:
    """Turn what the readers raise for a file into a `WeightsRefused` that says what to do."""
    try:
        yield
    except pickle.UnpicklingError as error:
        objects = re.search(r"GLOBAL ([\w.]+)", str(error))
        if objects:
            raise WeightsRefused(
                f"{file}: holds objects of {objects[1]} beside the tensors, and only tensors are read. If you trust "
                'the file, load it elsewhere and save the tensors alone: torch.save({"model": checkpoint["model"]}, …)'
            ) from error
        raise WeightsRefused(f"{file}: is damaged or no file of torch: copy it again") from error
    except (SafetensorError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError) as error:
        raise WeightsRefused(f"{file}: is damaged or truncated: {_first_line(error)} Copy it again") from error


def _first_line(error: BaseException) -> str:
    text = (str(error) or type(error).__name__).strip().splitlines()[0].strip()
    return text if text.endswith(".") else f"{text}."


def _json(data: bytes, place: str) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # the latter: brackets within brackets, some thousand deep
        raise WeightsRefused(f"{place}: is no JSON: {error}: copy it again") from error
    if not isinstance(found, dict):
        raise WeightsRefused(f"{place}: must hold a JSON object, not a {type(found).__name__}: copy it again")
    return found


def section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object within ``config.json``, empty if it is not there; raises `WeightsRefused` for anything else."""
    found = config.get(name)
    if found is not None and not isinstance(found, dict):
        raise WeightsRefused(f"{CONFIG}: {name} must be a JSON object, not a {type(found).__name__}: correct it")
    return found or {}


def _card_license(card: bytes) -> str | None:
    """The licence in the YAML at the top of a model card; None if there is none that can be read."""
    parts = card.decode(errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return None
    try:
        matter = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError, RecursionError):  # also: a date that is none, and brackets without an end
        return None  # a card is for people: one with broken YAML says nothing of the weights
    named = matter.get("license") if isinstance(matter, dict) else None
    return named if isinstance(named, str) and named else None


def _check_size(store: Store, name: str, limit: int) -> None:
    size = store.size(name)
    if size > limit:
        raise WeightsRefused(f"{_place(store, name)}: has {size:,} bytes, and at most {limit:,} are read")


def _place(store: Store, name: str) -> str:
    return posixpath.join(store.uri.rstrip("/"), name) if name else store.uri


def tensors_of(source: Source) -> dict[str, Tensor]:
    """The tensors of a folder by name; raises `WeightsRefused` if its files hold anything else."""
    for name, value in source.content.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise WeightsRefused(
                f"{source.label(name)}: is of type {kind}, and only tensors belong in a folder's weights"
            )
    return dict(source.content)
