"""An attempt's metrics and tags on their way to its MLflow run."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial

from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from trainer.errors import DIVERGENCE_ADVICE, LossNotFinite
from trainer.logger import logger
from trainer.protocol.names import TAG_LENGTH, TAG_NEWEST
from trainer.protocol.progress import Newest
from trainer.spec.metric_keys import SAMPLES
from trainer.tracking.client import MLFLOW, show
from trainer.tracking.interface import UsedDataset

SEND_SECONDS = 2.0
"""How often pending metrics and tags are sent."""
BATCH = 1000
"""MLflow's limit on the number of metrics in one request."""
NAME_LENGTH, DIGEST_LENGTH = 500, 36
"""MLflow's limits on the characters of a dataset's name and digest."""


class RunRecorder:
    """Sends metrics and tags in batches from a thread of its own.

    A batch that MLflow did not accept is sent again with the same timestamps, so nothing is recorded twice.
    """

    def __init__(self, tracking_uri: str, run_id: str, attempt: int) -> None:
        self._client = MlflowClient(tracking_uri)
        self._run_id, self._attempt = run_id, attempt
        self._pending: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._values: dict[str, float] = {}
        self._datasets: list[DatasetInput] = []
        self._first_samples: tuple[float, float] | None = None
        self._images_per_s: float | None = None
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of optimiser step ``step`` without waiting for MLflow.

        Raises `LossNotFinite` for a value that is not finite: MLflow could not store it, and training has diverged.
        """
        self.log_curve(step, metrics)
        with self._lock:
            self._values |= metrics
            self._measure_rate(metrics.get(SAMPLES))
            newest = Newest(attempt=self._attempt, step=step, values=self._values, images_per_s=self._images_per_s)
            text = newest.model_dump_json()
            if len(text) <= TAG_LENGTH:  # room for some hundred metrics
                self._tags[TAG_NEWEST] = text

    def log_curve(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record points of curves without waiting for MLflow, and leave the run's newest values as they are.

        Raises as `log`.
        """
        now = int(time.time() * 1000)
        broken = [key for key, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise LossNotFinite(f"not finite at step {step}: {', '.join(broken)}. {DIVERGENCE_ADVICE}")
        with self._lock:
            self._pending += [Metric(key, value, now, step) for key, value in metrics.items()]

    def _measure_rate(self, samples: float | None) -> None:
        """Update images per second of wall time since the first record, evaluations and checkpoints included."""
        if samples is None:
            return
        now = time.monotonic()
        if self._first_samples is None:
            self._first_samples = now, samples
        elif now > self._first_samples[0]:
            self._images_per_s = (samples - self._first_samples[1]) / (now - self._first_samples[0])

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run without waiting for MLflow."""
        with self._lock:
            self._tags |= {key: value[:TAG_LENGTH] for key, value in tags.items()}

    def use(self, datasets: Sequence[UsedDataset]) -> None:
        """Record the datasets that the run reads, without waiting for MLflow, which keeps each of them once."""
        with self._lock:
            self._datasets += [_input(each) for each in datasets]

    def send(self) -> None:
        """Send what is pending. Raises MLflow's error and keeps what MLflow did not accept."""
        with self._sending:
            while True:
                with self._lock:
                    batch, tags, datasets = self._pending[:BATCH], dict(self._tags), list(self._datasets)
                if not batch and not tags and not datasets:
                    return
                self._client.log_batch(self._run_id, batch, tags=[RunTag(key, value) for key, value in tags.items()])
                with self._lock:
                    del self._pending[: len(batch)]
                    self._tags = {key: value for key, value in self._tags.items() if tags.get(key) != value}
                if datasets:
                    show("the datasets of the run", partial(self._client.log_inputs, self._run_id, datasets))
                    with self._lock:
                        del self._datasets[: len(datasets)]

    def try_to_send(self) -> None:
        """Send what is pending if MLflow accepts it now; otherwise it goes out with the next batch."""
        try:
            self.send()
        except MlflowException as error:
            logger.debug("MLflow does not accept metrics now: %s", error)

    def drain(self) -> None:
        """Send everything, retrying for five minutes; raises `StorageError` if MLflow stays unreachable."""
        MLFLOW.call("store the last metrics and tags of the run", self.send)

    def close(self) -> None:
        """Stop the thread and `drain`."""
        self._ended.set()
        self._thread.join(timeout=60)
        self.drain()

    def _run(self) -> None:
        down = False
        while not self._ended.wait(SEND_SECONDS):
            try:
                self.send()
                down = False
            except MlflowException as error:
                if not down:
                    logger.warning("MLflow does not accept metrics and tags; they are sent once it does: %s", error)
                down = True


def _input(used: UsedDataset) -> DatasetInput:
    dataset = Dataset(
        name=used.name[:NAME_LENGTH],
        digest=used.fingerprint[:DIGEST_LENGTH],
        source_type="uri",
        source=json.dumps({"uri": used.uri}),
        profile=json.dumps({"images": used.images}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", used.purpose)])
