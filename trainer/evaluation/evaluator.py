"""Evaluation during training: reconstruction of held-out images, probes of the frozen backbone, a picture."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.data.dataset import TrainingData
from trainer.data.images import Images, fixed_images
from trainer.data.notices import Notice
from trainer.data.sampler import mask_orders
from trainer.errors import DataError, StorageError
from trainer.evaluation.features import extract
from trainer.evaluation.linear import linear_probe
from trainer.evaluation.pictures import reconstruction_grid
from trainer.evaluation.probe_images import FIXED_SEED, NoProbe, ProbeImages, probe_images
from trainer.evaluation.reconstruction import reconstruction_ratio
from trainer.logger import logger
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.protocol import names
from trainer.spec import metric_keys
from trainer.spec.pretrain import PretrainSpec
from trainer.storage import Store, patience

RATIO_IMAGES, PICTURE_IMAGES = 512, 6
BATCH = 64
PICTURE_SECONDS = 10.0
"""How long training waits for the storage of a picture."""


class Evaluator:
    """Evaluates on one process. The images, their masks and the probe's random weights never change during a run."""

    def __init__(
        self,
        spec: PretrainSpec,
        data: TrainingData,
        store: Store,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager[object]],
    ) -> None:
        self._spec, self._data, self._store, self._device, self._autocast = spec, data, store, device, autocast
        self._size = (spec.model.height, spec.model.width)
        self._visible = int(spec.model.patches * (1 - spec.method.mask_ratio))
        chosen = data.held_out[:RATIO_IMAGES]
        self._threads = int(spec.resources.cpus_per_worker)
        self._images = fixed_images(data.held_out_images, chosen, self._size, self._threads)
        self._orders = torch.from_numpy(mask_orders(FIXED_SEED, 0, np.arange(len(chosen)), spec.model.patches))
        self.notices: tuple[Notice, ...] = ()
        """What the data's owner should know of the probes."""
        self._probe = self._choose_probe()
        self._random_init: float | None = None

    def _choose_probe(self) -> ProbeImages | None:
        """The images of the linear probe; None if there is none. Raises `DataError` if one that was asked for cannot be
        made.
        """
        probes = self._spec.evaluation.probes
        if not probes:
            return None
        try:
            chosen = probe_images(self._data)
        except NoProbe as error:
            if probes != "auto":
                raise DataError(f"evaluation.probes: {error}") from error
            labelled = self._data.images.labels.labelled
            if labelled:
                self.notices = (Notice("no_probe", f"No linear probe is made: {error}"),)
            else:
                logger.info("No linear probe: %s", error)
            return None
        self.notices = chosen.notices
        return chosen

    def evaluate(self, student: MaskedAutoencoder, backbone: MaskedAutoencoder, step: int) -> dict[str, float]:
        """Metrics at optimiser step ``step``. Also stores a picture of reconstructions, if it can be stored."""
        settings = (self._data.mean, self._data.std, self._spec.method.norm_pix_loss)
        with self._autocast():
            ratio = reconstruction_ratio(
                student, self._images, self._orders, *settings, visible=self._visible, batch_size=BATCH
            )
            picture = reconstruction_grid(
                student, self._images[:PICTURE_IMAGES], self._orders[:PICTURE_IMAGES], *settings, visible=self._visible
            )
        try:
            with patience(PICTURE_SECONDS):
                self._store.write(names.picture_file(step), picture)
        except StorageError as error:
            logger.warning("The picture of step %d could not be stored and is lost: %s", step, error)
        metrics = {metric_keys.RECONSTRUCTION_RATIO: ratio}
        if self._probe:
            if self._random_init is None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(self._spec.seed)
                    fresh = MaskedAutoencoder(self._spec.model).to(self._device)
                self._random_init = self._linear(fresh, self._probe)
            metrics[metric_keys.LINEAR_TOP1] = self._linear(backbone, self._probe)
            metrics[metric_keys.LINEAR_TOP1_RANDOM_INIT] = self._random_init
        return metrics

    def _linear(self, backbone: MaskedAutoencoder, probe: ProbeImages) -> float:
        return linear_probe(
            self._features(backbone, self._data.images, probe.train), probe.train_labels,
            self._features(backbone, self._data.held_out_images, probe.held_out), probe.held_out_labels,
        )  # fmt: skip

    def _features(self, backbone: MaskedAutoencoder, images: Images, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features (n, D), a few images in memory at a time."""
        parts = []
        for first in range(0, len(rows), 4 * BATCH):
            pixels = fixed_images(images, rows[first : first + 4 * BATCH], self._size, self._threads)
            with self._autocast():
                parts.append(extract(backbone, pixels, self._data.mean, self._data.std, BATCH))
        return np.concatenate(parts)
