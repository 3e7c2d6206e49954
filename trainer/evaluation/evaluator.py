"""Evaluation during training: reconstruction of held-out images, probes of the frozen backbone, a picture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data.dataset import TrainingData
from trainer.data.notices import Notice
from trainer.data.sampler import mask_orders
from trainer.errors import DataError, StorageError
from trainer.evaluation.features import View, decoded, in_blocks
from trainer.evaluation.pictures import reconstruction_grid
from trainer.evaluation.probe_images import FIXED_SEED, NoProbe, ProbeImages, probe_images
from trainer.evaluation.probes import Probes
from trainer.evaluation.ranks import Ranks
from trainer.evaluation.reconstruction import Errors, block_errors, reconstruction_ratio
from trainer.evaluation.untrained import untrained_scores
from trainer.logger import logger
from trainer.models.encoder import Encoder
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.protocol import names
from trainer.spec import metric_keys
from trainer.spec.evaluation import PROBES
from trainer.spec.metric_keys import score_key
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store, patience

RATIO_IMAGES, PICTURE_IMAGES = 512, 6
PICTURE_SECONDS = 10.0
"""How long training waits for the storage of a picture."""


class Evaluator:
    """Evaluates on all ranks together; each of them makes one, and calls it at the same steps.

    The images, their masks and the untrained network never change during a run. The metrics are the same for any number
    of ranks.
    """

    def __init__(
        self,
        spec: PretrainSpec,
        data: TrainingData,
        store: Store,
        cache: Path,
        ranks: Ranks,
        device: torch.device,
        bf16: bool,
    ) -> None:
        """``cache`` is the folder of the node's copies."""
        self._spec, self._data, self._store, self._cache, self._ranks = spec, data, store, cache, ranks
        self._device, self._bf16 = device, bf16
        self._threads = int(spec.resources.cpus_per_worker)
        self._view = View((spec.model.height, spec.model.width), data.mean, data.std)
        self._visible = int(spec.model.patches * (1 - spec.method.mask_ratio))
        self.notices: tuple[Notice, ...] = ()
        """What the data's owner should know of the probes."""
        self._probes = self._choose_probes()
        self._blocks: list[tuple[Tensor, Tensor]] = []
        """This rank's blocks of the ratio's images: pixels and orders."""
        self._ranks.collect(self._decode_blocks)
        self._untrained: dict[str, float] | None = None

    def _choose_probes(self) -> Probes | None:
        """The probes; None if there are none. Raises `DataError` if one that was asked for cannot be made."""
        wanted = self._spec.evaluation.probes
        chosen = self._probe_images() if wanted else None
        if chosen is None:
            return None
        self.notices = chosen.notices
        measured = [each for each in PROBES if wanted == "auto" or each in wanted]
        return Probes(
            measured, chosen, self._data, self._view, self._ranks, self._threads, self._bf16, self._device
        )  # fmt: skip

    def _probe_images(self) -> ProbeImages | None:
        try:
            return probe_images(self._data)
        except NoProbe as error:
            if self._spec.evaluation.probes != "auto":
                raise DataError(f"evaluation.probes: {error}") from error
            if self._data.images.labels.labelled:
                self.notices = (Notice("no_probe", f"No probes are made: {error}"),)
            elif self._ranks.rank == 0:
                logger.info("No probes: %s", error)
            return None

    def _decode_blocks(self) -> None:
        chosen = self._data.held_out[:RATIO_IMAGES]
        orders = torch.from_numpy(mask_orders(FIXED_SEED, 0, np.arange(len(chosen)), self._spec.model.patches))
        own = slice(self._ranks.rank, None, self._ranks.world)
        rows, masks = in_blocks(chosen)[own], [orders[each] for each in in_blocks(np.arange(len(chosen)))[own]]
        with closing(decoded(self._data.held_out_images, rows, self._view.size, self._threads)) as pixels:
            self._blocks = list(zip(pixels, masks, strict=True))

    def evaluate(self, student: MaskedAutoencoder, backbone: Encoder, step: int) -> dict[str, float]:
        """Metrics at optimiser step ``step``, on every rank; also stores a picture of reconstructions, if it can be.

        An error of one rank is raised on all of them.
        """
        every = self._ranks.collect(lambda: list(self._errors(student)))
        in_order = [every[block % len(every)][block // len(every)] for block in range(sum(map(len, every)))]
        metrics = {metric_keys.RECONSTRUCTION_RATIO: reconstruction_ratio(in_order)}
        if self._probes:
            if self._untrained is None:
                self._untrained = untrained_scores(self._probes, self._spec.model, self._store, self._cache)
            for name, top1 in self._probes.scores(backbone).items():
                metrics[score_key(name)] = top1
                metrics[score_key(name, weights="random")] = self._untrained[name]
        self._ranks.collect(lambda: self._draw(student, step) if self._ranks.rank == 0 else None)
        return metrics

    def _errors(self, student: MaskedAutoencoder) -> Iterator[Errors]:
        for images, orders in self._blocks:
            with self._autocast():
                yield block_errors(student, images, orders, *self._settings(), visible=self._visible)

    def _draw(self, student: MaskedAutoencoder, step: int) -> None:
        images, orders = self._blocks[0]
        with self._autocast():
            picture = reconstruction_grid(
                student, images[:PICTURE_IMAGES], orders[:PICTURE_IMAGES], *self._settings(), visible=self._visible
            )
        try:
            with patience(PICTURE_SECONDS):
                self._store.write(names.picture_file(step), picture)
        except StorageError as error:
            logger.warning("The picture of step %d could not be stored and is lost: %s", step, error)

    def _settings(self) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
        return self._data.mean, self._data.std, self._spec.method.norm_pix_loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16)
