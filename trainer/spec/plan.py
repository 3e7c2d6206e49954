"""What a spec will need: resources, parameters, steps, operations and memory, calculated without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, TypeVar, cast

from trainer.spec.base import Problem, SpecError
from trainer.spec.cluster import ClusterShape, Gang, plural
from trainer.spec.job import JobSpec
from trainer.spec.pretrain import MethodSpec, ModelSpec, PretrainSpec

S = TypeVar("S", bound=JobSpec)

HELD_OUT_SHARE, HELD_OUT_MAX = 10, 2048


def resolve(spec: S, cluster: ClusterShape) -> S:
    """The spec with every `auto` of its resources and the CPU's micro batch filled in. Resolving twice changes nothing.

    `workers` takes all GPUs, and `cpus_per_worker` as many CPUs as still let all workers fit on the nodes.
    `optimization.precision`, `compile` and a GPU's `micro_batch_size`, `augmentation.mean` and `std`, and
    `evaluation.probes` stay as written: the worker chooses them by its device and its data.
    """
    sections = spec.resolved_sections(cluster)
    return cast(S, type(spec).parse(spec.model_dump(mode="json") | sections)) if sections else spec


def impossible(spec: JobSpec, cluster: ClusterShape) -> str | None:
    """Why a resolved spec can never run on this cluster, in a sentence; None if it can, or while it has no nodes."""
    if cluster.without_nodes:
        return None
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
    room = cluster.holds(needs.cpus, needs.gpus)
    if room < needs.workers:
        return (
            f"needs {needs}, and the cluster's nodes have room for {room or 'none'}: "
            "lower resources.workers or resources.cpus_per_worker, or add nodes"
        )
    return None


def gang(spec: JobSpec) -> Gang:
    """All workers that a resolved spec needs at a time; raises `ValueError` for a spec that is not resolved."""
    resources = spec.worker_resources
    if resources.workers == "auto" or resources.cpus_per_worker == "auto" or resources.gpus_per_worker == "auto":
        raise ValueError("the spec is not resolved: call resolve() first")
    workers = spec.concurrent_runs * resources.workers
    return Gang(workers, resources.cpus_per_worker, resources.gpus_per_worker)


def held_out_images(images: int, *, at_least_one: bool = True) -> int:
    """How many of a dataset's images are held out if no other dataset is named for evaluation."""
    least = 1 if at_least_one and images > 1 else 0
    return max(least, min(images // HELD_OUT_SHARE, HELD_OUT_MAX))


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
        held_out = 0 if spec.evaluation.dataset else held_out_images(images)
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


def step_flops(model: ModelSpec, method: MethodSpec) -> int:
    """Floating point operations of one image in a training step, two for each multiply-add of a matrix product.

    The backward pass counts as two forward passes, and the teacher as one more: a third above MAE.
    """
    visible = int(model.patches * (1 - method.mask_ratio))
    masked, dim, width = model.patches - visible, model.embed_dim, model.decoder_embed_dim

    def block(tokens: int, out: int, d: int) -> int:
        return 6 * tokens * d * d + 4 * tokens * out * d + 18 * out * d * d

    encoded, decoded = visible + 1, model.patches + 1  # tokens, with the class token
    forward = 2 * visible * model.patch_values * dim + model.depth * block(encoded, encoded, dim)
    forward += 2 * encoded * dim * width
    forward += (model.decoder_depth - 1) * block(decoded, decoded, width) + block(decoded, masked, width)
    forward += 2 * masked * width * model.patch_values
    return forward * (4 if method.teacher else 3)


def memory_per_worker(model: ModelSpec, method: MethodSpec, micro_batch: int, bf16: bool) -> int:
    """Estimated bytes of one worker's training state and activations at their peak.

    State: fp32 weights, gradients and two Adam moments (16 bytes per parameter), four more bytes for a teacher.
    Activations kept for the backward pass: about 19 values of the block's width per token and block, some of them
    halved by bf16. Within a tenth of measurements at 32 px, ViT-Tiny and ViT-Small. Libraries and fragmentation are not
    included.
    """
    encoder, decoder = model.parameters
    state = (encoder + decoder) * (20 if method.teacher else 16)
    visible = int(model.patches * (1 - method.mask_ratio)) + 1
    tokens = (
        visible * model.depth * model.embed_dim + (model.patches + 1) * model.decoder_depth * model.decoder_embed_dim
    )
    pixels = 3 * model.patches * model.patch_values
    return state + micro_batch * (tokens * (48 if bf16 else 76) + pixels * 4)
