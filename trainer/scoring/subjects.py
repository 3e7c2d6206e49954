"""The network that a job measures or uses, read from a checkpoint, a registered version or weights from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from trainer.data.scale import EIGHT_BIT, Scale
from trainer.errors import SpecRefused, WeightsRefused
from trainer.evaluation.features import View
from trainer.evaluation.ranks import Ranks
from trainer.models.encoder import Encoder
from trainer.protocol import names
from trainer.protocol.evaluation import Evaluated
from trainer.protocol.message import Message
from trainer.protocol.request import AttemptRequest, Source, VersionSource
from trainer.protocol.tensor_names import is_decoder
from trainer.spec.formats import WEIGHTS_FORMATS
from trainer.spec.pretrain import ModelSpec
from trainer.spec.subject import CheckpointRef, SubjectRef, WeightsRef
from trainer.storage import Store
from trainer.training import checkpoint as checkpoints
from trainer.training.state import read_parts, spec_of
from trainer.weights.agreement import check_forward
from trainer.weights.foreign import ForeignWeights, read_weights
from trainer.weights.locating import chosen_network, open_weights

DEEP_TYPES: Final = ("int8", "int16", "int32", "uint16", "uint32", "float16", "float32", "float64")
"""Types of pixel values beside 8 bits without a sign."""
BYTES: Final = (0.0, 255.0)
CHOSEN: Final = "subject.json"
"""In the run's artifact folder: JSON of `Chosen`."""


class Chosen(Message):
    """The checkpoint that a job's first attempt has taken of a job that may still train."""

    attempt: int
    checkpoint: str


@dataclass(frozen=True)
class Subject:
    """A trained encoder, and how it sees pictures."""

    described: Evaluated
    model: ModelSpec
    state: Mapping[str, Tensor]
    """The encoder's tensors, by the names of `Encoder`."""
    view: View
    scale: Scale
    """Which pixel values become black and white."""
    fingerprint: str | None = None
    """Identity of the dataset that it was trained on, where that is known."""
    held_out: bool = True
    """Whether its training held some images of that dataset out, rather than evaluate on others."""
    held_out_by_class: bool = True
    """How, see `trainer.data.index.split`."""
    notes: tuple[str, ...] = ()
    """What was assumed or adapted when it was read."""

    def encoder(self, device: torch.device) -> Encoder:
        """The encoder, frozen, in evaluation mode."""
        network = Encoder(self.model)
        network.load_state_dict(dict(self.state))
        return network.to(device).eval().requires_grad_(False)

    def untrained(self, seed: int, device: torch.device) -> Encoder:
        """The same network with weights drawn from a seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Encoder(self.model).to(device).eval().requires_grad_(False)


def load_subject(ref: SubjectRef, request: AttemptRequest, field: str = "backbone") -> Subject:
    """Read the network that a spec's ``field`` names, from where the attempt's request says that it is.

    Raises `SpecRefused` if it is not there, `WeightsRefused` for weights that are damaged or of another kind of
    network, `DamagedCheckpoint` and `StorageError`.
    """
    source = request.source
    if isinstance(ref, WeightsRef):
        return _elsewhere(ref, request.dataset_roots, field)
    if isinstance(ref, CheckpointRef) and isinstance(source, Source):
        return _checkpoint(ref, source, field)
    if isinstance(source, VersionSource):
        return _version(source, field)
    raise SpecRefused(f"source: the request must say where the {field} is, and does not")


def load_shared(
    ref: SubjectRef, request: AttemptRequest, store: Store, ranks: Ranks, field: str = "backbone"
) -> Subject:
    """`load_subject` on every rank; of a job that may still train, the checkpoint that the first attempt has taken.

    ``store`` is the run's artifact folder, where that is written down. Every rank calls this.
    """
    settled = ranks.collect(lambda: _settled(ref, request, store) if ranks.rank == 0 else None)[0]
    loaded: list[Subject] = []
    ranks.collect(lambda: loaded.append(load_subject(settled or ref, request, field)))
    return loaded[0]


def _settled(ref: SubjectRef, request: AttemptRequest, store: Store) -> SubjectRef:
    source = request.source
    if not isinstance(ref, CheckpointRef) or ref.checkpoint is not None or not isinstance(source, Source):
        return ref
    chosen = Chosen.model_validate_json(store.read(CHOSEN)) if store.exists(CHOSEN) else None
    if chosen is None or chosen.attempt < request.since_attempt:
        kept = checkpoints.find_kept(Store(source.artifact_uri), None, source.since_attempt, source.job_id)
        chosen = Chosen(attempt=request.attempt, checkpoint=kept.folder)
        store.write(CHOSEN, chosen.model_dump_json().encode())
    return ref.model_copy(update={"checkpoint": chosen.checkpoint})


def _checkpoint(ref: CheckpointRef, source: Source, field: str) -> Subject:
    store = Store(source.artifact_uri)
    kept = checkpoints.find_kept(store, ref.checkpoint, source.since_attempt, source.job_id)
    trained = spec_of(store, kept)
    network = ref.network or trained.export.network
    if network == "teacher" and trained.method.teacher is None:
        raise SpecRefused(f"{field}.network: method {trained.method.name} has no teacher: use student")
    stored = read_parts(store, kept, (network,))
    state = {name: value for name, value in stored.tensors[network].items() if not is_decoder(name)}
    described = Evaluated(
        title=f"{source.job_id}, step {stored.metadata.step} ({network})",
        job=source.job_id,
        checkpoint=kept.folder,
        network=network,
        step=stored.metadata.step,
        **_sizes(trained.model),
    )
    view = View((trained.model.height, trained.model.width), stored.metadata.mean, stored.metadata.std)
    return Subject(
        described,
        trained.model,
        state,
        view,
        Scale(stored.metadata.scale),
        stored.metadata.dataset_fingerprint,
        held_out=trained.evaluation.dataset is None,
        held_out_by_class=stored.metadata.held_out_by_class,
    )


def _version(source: VersionSource, field: str) -> Subject:
    store = Store(source.folder)
    readable = next((form for form in WEIGHTS_FORMATS if store.names(form)), None)
    if readable is None:
        raise SpecRefused(
            f"{field}: {source.name}:{source.version} has no folder {', '.join(WEIGHTS_FORMATS)} to read weights from: "
            "name the checkpoint of its job, or another version"
        )
    step = source.tags.get(names.TAG_STEP)
    title = f"{source.name}:{source.version}"
    subject = _of_weights(read_weights(store, readable), None, title, field)
    described = subject.described.model_copy(
        update={
            "name": source.name,
            "version": source.version,
            "job": source.trained_by,
            "checkpoint": source.tags.get(names.TAG_CHECKPOINT),
            "network": source.tags.get(names.TAG_NETWORK),
            "step": int(step) if step else None,
        }
    )
    spec = json.loads(store.read(names.BACKBONE_SPEC)) if store.exists(names.BACKBONE_SPEC) else {}
    held_out = not (spec.get("evaluation") or {}).get("dataset")
    fingerprint = source.tags.get(names.TAG_DATASET)
    return replace(subject, described=described, fingerprint=fingerprint, held_out=held_out, notes=())


def _elsewhere(ref: WeightsRef, roots: tuple[str, ...] | None, field: str) -> Subject:
    store, name = open_weights(ref, field, roots)
    weights = read_weights(store, name, num_heads=ref.num_heads, decoder_num_heads=ref.decoder_num_heads)
    check_forward(weights)
    return _of_weights(weights, ref, ref.uri.rpartition("/")[2], field)


def _of_weights(weights: ForeignWeights, ref: WeightsRef | None, title: str, field: str) -> Subject:
    network, state = chosen_network(weights, ref.network if ref else None, f"{field}.network")
    model, values = weights.model, weights.value_range
    kinds = (EIGHT_BIT,) if values == BYTES else DEEP_TYPES
    return Subject(
        described=Evaluated(title=title, network=network, **_sizes(model)),
        model=model,
        state={name: value for name, value in state.items() if not is_decoder(name)},
        view=View((model.height, model.width), weights.mean, weights.std),
        scale=Scale(dict.fromkeys(kinds, values)),
        notes=weights.notes,
    )


def check_finite(features: Tensor, subject: Subject, layer: int, remedy: str) -> None:
    """Raise `WeightsRefused` unless everything that a network gave after a block is a finite number."""
    if not features.sum(dtype=torch.float64).isfinite():  # a sum, as it takes no memory
        raise WeightsRefused(
            f"backbone: the features of {subject.described.title} after block {layer} are not finite numbers: its "
            f"weights are damaged, its training has diverged, or values overflow: try {remedy}, or name another network"
        )


def _sizes(model: ModelSpec) -> dict[str, object]:
    return {
        "depth": model.depth,
        "embed_dim": model.embed_dim,
        "patch_size": model.patch_size,
        "encoder_parameters": model.parameters[0],
        "img_size": (model.height, model.width),
    }
