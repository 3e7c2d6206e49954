"""What a spec will need: `auto` values filled in, parameters, steps and memory, worked out without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, TypeVar, cast

from trainer.spec.base import Problem, SpecError
from trainer.spec.job import JobSpec
from trainer.spec.pretrain import MethodSpec, ModelSpec, PretrainSpec, ResourcesSpec
from trainer.spec.publish import PublishResources
from trainer.spec.search import SearchSpec

S = TypeVar("S", bound=JobSpec)

MAX_AUTO_CPUS = 16
"""More threads than this in one process slow small matrix products down."""

CPU_TOKENS = 8192
"""Tokens of the decoder that a CPU takes at once: more make it no faster and take memory."""

HELD_OUT_SHARE, HELD_OUT_MAX = 10, 2048


@dataclass(frozen=True)
class NodeShape:
    """What one node has, or has left, in whole CPUs and GPUs."""

    cpus: int
    gpus: int = 0
    id: str = ""
    """Ray's id of the node."""
    ip: str = ""

    def holds(self, cpus: int, gpus: int) -> int:
        """How many workers of this size fit on it."""
        return min(self.cpus // cpus, self.gpus // gpus) if gpus else self.cpus // cpus


@dataclass(frozen=True)
class ClusterShape:
    """What a cluster's nodes have in all, busy or not."""

    nodes: tuple[NodeShape, ...]

    @classmethod
    def of(cls, cpus: int, gpus: int = 0) -> Self:
        """A cluster of one node."""
        return cls((NodeShape(cpus, gpus),))

    @property
    def cpus(self) -> int:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> int:
        return sum(node.gpus for node in self.nodes)

    def holds(self, cpus: int, gpus: int) -> int:
        """How many workers of this size fit, none of them on two nodes."""
        return sum(node.holds(cpus, gpus) for node in self.nodes)


@dataclass(frozen=True)
class Gang:
    """Workers that start together or not at all, each with so many CPUs and GPUs on one node."""

    workers: int
    cpus: int
    gpus: int = 0

    @property
    def all_cpus(self) -> int:
        return self.workers * self.cpus

    @property
    def all_gpus(self) -> int:
        return self.workers * self.gpus

    def __str__(self) -> str:
        each = f"{plural(self.gpus, 'GPU')} and {plural(self.cpus, 'CPU')}" if self.gpus else plural(self.cpus, "CPU")
        return f"{plural(self.workers, 'worker')} of {each}{' each' if self.workers > 1 else ''}"


def plural(count: int, noun: str) -> str:
    """`1 GPU`, `2 GPUs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def resolve(spec: S, cluster: ClusterShape) -> S:
    """The spec with every `auto` of its resources and the CPU's micro batch filled in. Resolving twice changes nothing.

    `workers` takes all GPUs, and `cpus_per_worker` no more than lets all workers be placed on the nodes.
    `optimization.precision`, `compile` and a GPU's `micro_batch_size`, `augmentation.mean` and `std`, and
    `evaluation.probes` stay as written: the worker settles them by its device and its data. Other kinds of jobs have no
    `auto`.
    """
    if isinstance(spec, SearchSpec):
        return cast(S, _resolved_search(spec, cluster))
    if not isinstance(spec, PretrainSpec):
        return spec
    resources, batch = spec.resources, spec.optimization.global_batch_size
    gpus = resources.gpus_per_worker if resources.gpus_per_worker != "auto" else int(cluster.gpus > 0)
    written = resources.cpus_per_worker
    if resources.workers != "auto":
        workers = resources.workers
    else:
        limit = max(1, cluster.holds(1 if written == "auto" else written, gpus)) if gpus else 1
        micro = spec.optimization.micro_batch_size
        shares = batch if micro == "auto" else batch // micro
        workers = max(n for n in range(1, min(limit, shares) + 1) if shares % n == 0)
    if written != "auto":
        cpus = written
    else:
        cpus = max((n for n in range(1, MAX_AUTO_CPUS + 1) if cluster.holds(n, gpus) >= workers), default=1)
    loaders = resources.loader_processes
    if loaders == "auto":
        loaders = max(1, cpus - 1) if gpus else 0
    micro_batch = spec.optimization.micro_batch_size
    if micro_batch == "auto" and not gpus:
        micro_batch = divisor(batch // workers, max(1, CPU_TOKENS // (1 + spec.model.patches)))
    return type(spec).parse(
        spec.model_dump(mode="json")
        | {
            "resources": {
                "workers": workers,
                "gpus_per_worker": gpus,
                "cpus_per_worker": cpus,
                "loader_processes": loaders,
            },
            "optimization": spec.optimization.model_dump(mode="json") | {"micro_batch_size": micro_batch},
        }
    )


def _resolved_search(spec: SearchSpec, cluster: ClusterShape) -> SearchSpec:
    """Resources of a trial, which has one worker unless the base says otherwise, and as many trials at a time as fit.

    Trials fill in the rest: by then their own values are known.
    """
    resources = spec.base_spec.resources
    workers = 1 if resources.workers == "auto" else resources.workers
    gpus = resources.gpus_per_worker if resources.gpus_per_worker != "auto" else int(cluster.gpus > 0)
    wanted = workers * max(1, min(spec.budget.concurrency, cluster.holds(1, gpus) // workers))
    if resources.cpus_per_worker != "auto":
        cpus = resources.cpus_per_worker
    else:
        cpus = max((n for n in range(1, MAX_AUTO_CPUS + 1) if cluster.holds(n, gpus) >= wanted), default=1)
    room = max(1, cluster.holds(cpus, gpus) // workers)
    settled = {"workers": workers, "gpus_per_worker": gpus, "cpus_per_worker": cpus}
    document = spec.model_dump(mode="json")
    written = document["base"].get("resources") or {}
    document["base"] = document["base"] | {"resources": written | settled}
    document["budget"]["concurrency"] = min(spec.budget.concurrency, room)
    return SearchSpec.parse(document)


def impossible(spec: JobSpec, cluster: ClusterShape) -> str | None:
    """Why a resolved spec can never run on this cluster, in a sentence; None if it can."""
    needs = gang(spec)
    if needs.all_gpus > cluster.gpus:
        return (
            f"needs {plural(needs.all_gpus, 'GPU')}, {cluster.gpus} in the cluster: "
            "lower resources.workers or add nodes"
        )
    if needs.all_cpus > cluster.cpus:
        return (
            f"needs {plural(needs.all_cpus, 'CPU')}, {cluster.cpus} in the cluster: "
            "lower resources.workers or resources.cpus_per_worker, or add nodes"
        )
    fitting = cluster.holds(needs.cpus, needs.gpus)
    if fitting < needs.workers:
        return (
            f"needs {needs}, and the cluster's nodes have room for {fitting or 'none'}: "
            "lower resources.workers or resources.cpus_per_worker, or add nodes"
        )
    return None


def resources_of(spec: JobSpec) -> ResourcesSpec | PublishResources:
    """What one attempt's workers have; of a search, those of one trial."""
    return spec.base_spec.resources if isinstance(spec, SearchSpec) else spec.resources


def gang(spec: JobSpec) -> Gang:
    """The workers of a resolved spec, of all its trials at a time; raises `ValueError` for one that is not."""
    resources = resources_of(spec)
    if resources.workers == "auto" or resources.cpus_per_worker == "auto" or resources.gpus_per_worker == "auto":
        raise ValueError("the spec is not resolved: call resolve() first")
    trials = spec.budget.concurrency if isinstance(spec, SearchSpec) else 1
    return Gang(trials * resources.workers, resources.cpus_per_worker, resources.gpus_per_worker)


@dataclass(frozen=True)
class Schedule:
    """Steps and samples of a run over a known number of training images."""

    train_images: int
    held_out_images: int
    steps_per_epoch: int
    steps: int

    @classmethod
    def of(cls, spec: PretrainSpec, images: int) -> Self:
        """For a dataset of ``images`` readable images; raises `SpecError` when one global batch does not fit in it."""
        held_out = 0 if spec.evaluation.dataset else min(images // HELD_OUT_SHARE, HELD_OUT_MAX)
        train, batch = images - held_out, spec.optimization.global_batch_size
        if batch > train:
            raise SpecError(
                [
                    Problem(
                        "optimization.global_batch_size",
                        "/optimization/global_batch_size",
                        batch,
                        f"is larger than the {train} training images: lower it, or add images",
                    )
                ]
            )
        per_epoch = train // batch
        return cls(train, held_out, per_epoch, per_epoch * spec.optimization.epochs)


def parameters(model: ModelSpec) -> tuple[int, int]:
    """Trainable parameters of encoder and decoder (position embeddings are fixed and not counted)."""

    def blocks(dim: int, depth: int) -> int:
        return depth * (12 * dim * dim + 13 * dim)

    encoder = model.patch_values * model.embed_dim + model.embed_dim + model.embed_dim  # patches, bias, class token
    encoder += blocks(model.embed_dim, model.depth) + 2 * model.embed_dim
    dim = model.decoder_embed_dim
    decoder = model.embed_dim * dim + dim + dim + blocks(dim, model.decoder_depth) + 2 * dim
    decoder += dim * model.patch_values + model.patch_values
    return encoder, decoder


def divisor(share: int, limit: int) -> int:
    """The largest divisor of ``share`` that is at most ``limit`` (and at least 1)."""
    return max(n for n in range(1, max(1, min(share, limit)) + 1) if share % n == 0)


def step_flops(model: ModelSpec, method: MethodSpec) -> int:
    """Floating point operations of one image in a training step, two for each multiply-add of a matrix product.

    A backward pass costs two forward ones, the teacher one more: a third above MAE.
    """
    visible = int(model.patches * (1 - method.mask_ratio))
    masked, dim, width = model.patches - visible, model.embed_dim, model.decoder_embed_dim

    def block(tokens: int, out: int, d: int) -> int:
        return 6 * tokens * d * d + 4 * tokens * out * d + 18 * out * d * d

    seen, every = visible + 1, model.patches + 1
    forward = 2 * visible * model.patch_values * dim + model.depth * block(seen, seen, dim) + 2 * seen * dim * width
    forward += (model.decoder_depth - 1) * block(every, every, width) + block(every, masked, width)
    forward += 2 * masked * width * model.patch_values
    return forward * (4 if method.teacher else 3)


def memory_per_worker(model: ModelSpec, method: MethodSpec, micro_batch: int, bf16: bool) -> int:
    """Bytes one worker's training state and activations take at their peak, estimated.

    State: fp32 weights, gradients and two Adam moments (16 bytes a parameter), four more for a teacher. Activations
    kept for the backward pass: about 19 values of the block's width a token and block, some of them halved by bf16.
    Within a tenth of what is measured at 32 px, ViT-Tiny and ViT-Small; libraries and fragments are not in it.
    """
    encoder, decoder = parameters(model)
    state = (encoder + decoder) * (20 if method.teacher else 16)
    visible = int(model.patches * (1 - method.mask_ratio)) + 1
    tokens = (
        visible * model.depth * model.embed_dim + (model.patches + 1) * model.decoder_depth * model.decoder_embed_dim
    )
    pixels = 3 * model.patches * model.patch_values
    return state + micro_batch * (tokens * (48 if bf16 else 76) + pixels * 4)
