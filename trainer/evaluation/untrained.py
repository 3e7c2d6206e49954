"""The scores of a network with untrained weights, which pretraining is compared with: measured once and kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import ValidationError

from trainer.errors import StorageError
from trainer.evaluation.probe_images import FIXED_SEED
from trainer.evaluation.probes import Probes
from trainer.logger import logger
from trainer.models.encoder import Encoder
from trainer.protocol import names
from trainer.protocol.message import Message
from trainer.spec.pretrain import ModelSpec
from trainer.storage import Store, patience

PATIENCE_SECONDS: Final = 10.0
"""How long training waits for the storage of kept scores: measuring them again costs less than a longer wait."""
FOLDER: Final = "untrained"
"""Of the node's cache: kept scores that its later jobs may use, a few hundred bytes each."""


class UntrainedScores(Message):
    """What was measured, with all that it depends on."""

    settings: dict[str, Any]
    scores: dict[str, float]
    """By probe."""


def untrained(model: ModelSpec) -> Encoder:
    """The encoder with random weights that never change, whatever the seed of a spec: so runs compare."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(FIXED_SEED)
        return Encoder(model)


def untrained_scores(probes: Probes, model: ModelSpec, store: Store, cache: Path) -> dict[str, float]:
    """The untrained network's scores by probe; every rank calls this.

    They are taken from the run's artifact folder, where an earlier attempt has kept them, or from the node's cache
    folder ``cache``, where another job has. Otherwise they are measured, and kept in both.
    """
    sizes = (model.height, model.width, model.patch_size, model.in_chans, model.embed_dim, model.depth, model.num_heads)
    settings = probes.settings() | {"model": list(sizes)}
    ranks, places = probes.ranks, _Places(store, cache, settings)
    kept = ranks.collect(lambda: places.read() if ranks.rank == 0 else None)[0]
    if kept is None:
        kept = probes.scores(untrained(model).to(probes.device))
        if ranks.rank == 0:
            places.write(kept)
    return kept


class _Places:
    """Where the scores are kept."""

    def __init__(self, store: Store, cache: Path, settings: dict[str, Any]) -> None:
        self._settings = settings
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
        self._files = ((store, names.UNTRAINED), (Store(str(cache / FOLDER)), f"{key[:32]}.json"))

    def read(self) -> dict[str, float] | None:
        """The kept scores; None if there are none of the same settings."""
        for store, name in self._files:
            try:
                with patience(PATIENCE_SECONDS):
                    kept = UntrainedScores.model_validate_json(store.read(name)) if store.exists(name) else None
            except (StorageError, ValidationError) as error:
                logger.warning("The untrained network is measured again: %s/%s: %s", store.uri, name, error)
                continue
            if kept and kept.settings == self._settings:
                if store is not self._files[0][0]:
                    self._write(*self._files[0], kept)
                return kept.scores
        return None

    def write(self, scores: dict[str, float]) -> None:
        """Keep the scores; where that fails, a later attempt measures them again."""
        for store, name in self._files:
            self._write(store, name, UntrainedScores(settings=self._settings, scores=scores))

    def _write(self, store: Store, name: str, kept: UntrainedScores) -> None:
        try:
            with patience(PATIENCE_SECONDS):
                store.write(name, kept.model_dump_json(indent=1).encode())
        except StorageError as error:
            logger.warning("The untrained network's scores are not kept in %s: %s", store.uri, error)
