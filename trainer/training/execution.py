"""How the step runs on this worker: its precision, compiled or not, how many images at once, alone or under DDP."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.errors import SpecRefused
from trainer.logger import logger
from trainer.spec.plan import Schedule, memory_per_worker, step_flops
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.resources import divisor
from trainer.training.step import Objective

CPU_RATE = 100e9
"""Rough FLOPs per second of a core, only used to tell a short run from a long one."""
CPU_WORTH_COMPILING = 3600.0
"""Seconds of training on a CPU above which compiling, a minute or two at each start, pays for itself."""
GPU_SHARE, GPU_RESERVED = 0.9, 2**30
"""The share of a GPU's memory that the estimate may fill, after what CUDA takes; the rest is for fragmentation."""


def uses_bf16(precision: Literal["auto", "fp32", "bf16"], device: torch.device, field: str) -> bool:
    """Whether forward passes run under bf16 autocast; raises `SpecRefused`, with the ``field``, where it cannot."""
    able = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able:
        raise SpecRefused(f"{field}: bf16 is not supported by this GPU: use fp32")
    return precision == "bf16" or (precision == "auto" and device.type != "cpu" and able)


def compile_if_it_pays(objective: Objective, spec: PretrainSpec, schedule: Schedule, device: torch.device) -> None:
    """Compile the objective in place as `optimization.compile` says; every rank calls it and all do the same.

    Raises `SpecRefused` where the spec demands it and the node lacks what it takes.
    """
    wanted, lacking = spec.optimization.compile, _lacking(device)
    if wanted is True and lacking:
        raise SpecRefused(f"optimization.compile: is true, and this node has no {lacking}: install it, or use auto")
    if wanted is False:
        reason: str | None = "optimization.compile is false"
    elif wanted == "auto" and device.type == "cpu" and _seconds(spec, schedule) < CPU_WORTH_COMPILING:
        reason = "on the CPU and for so short a run compiling does not pay"
    elif not everywhere(lacking is None, device):
        reason = f"this node has no {lacking}" if lacking else "another worker's node lacks what compiling takes"
    else:
        reason = None
    if reason:
        logger.info("The step runs as it is written: %s", reason)
        return
    # Gradients are averaged after the whole backward pass: splitting the graph at DDP's buckets would overlap the two,
    # and costs a graph for each bucket and the fusion across them.
    torch._dynamo.config.optimize_ddp = False  # noqa: SLF001 - its public setting lives there
    objective.compile(fullgraph=True, dynamic=False)
    logger.info("The step is compiled: the first one takes a minute or more")


def _lacking(device: torch.device) -> str | None:
    """What torch.compile needs and this node does not have."""
    if not shutil.which(os.environ.get("CXX", "g++")):  # where torch.compile looks for it
        return "C++ compiler (g++)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "header files of Python (python3-dev)"
    if device.type == "cuda" and not torch.utils._triton.has_triton():  # noqa: SLF001 - torch's own test for it
        return "Triton"
    return None


def _seconds(spec: PretrainSpec, schedule: Schedule) -> float:
    """A very rough estimate of a run's time on the CPU, from spec and data alone: the same for every attempt."""
    images = schedule.steps * spec.optimization.global_batch_size
    cores = int(spec.resources.workers) * int(spec.resources.cpus_per_worker)
    return images * step_flops(spec.model, spec.method) / (cores * CPU_RATE)


def everywhere(here: bool, device: torch.device) -> bool:
    """Whether ``here`` is true on every rank. Every rank calls this."""
    if not dist.is_initialized():
        return here
    flag = torch.tensor(int(here), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def settle_micro_batch(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    spec: PretrainSpec,
    device: torch.device,
    recorded: int | None,
) -> int:
    """Images that go through the network at once: the spec's number, or as many as fit into the GPU's memory.

    ``recorded`` is what an earlier attempt with as many workers used; using it again keeps the order of sums. Without
    it, the number is estimated, tried with a forward and backward pass, and halved until it fits on every rank.
    """
    written = spec.optimization.micro_batch_size
    if written != "auto":
        return written
    share = spec.optimization.global_batch_size // int(spec.resources.workers)
    if recorded is None and device.type != "cuda":
        raise SpecRefused("optimization.micro_batch_size: is 'auto'; on the CPU the loop takes a resolved spec")
    bf16 = uses_bf16(spec.optimization.precision, device, "optimization.precision")
    micro_batch = recorded or largest_by_memory(
        [n for n in range(1, share + 1) if share % n == 0],
        lambda images: memory_per_worker(spec.model, spec.method, images, bf16),
        device,
    )
    micro_batch = halve_until_it_fits(
        micro_batch,
        lambda limit: divisor(share, limit),
        lambda images: objective(*_blank(spec, images, device))[0],
        objective,
        optimizer,
        device,
    )
    logger.info("%d images at once, %d parts of a step", micro_batch, share // micro_batch)
    return micro_batch


def halve_until_it_fits(
    micro_batch: int,
    at_most: Callable[[int], int],
    loss: Callable[[int], Tensor],
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> int:
    """The first of ``micro_batch``, its half and so on that goes through the network on every rank.

    ``at_most`` gives the next number to try, up to a limit; ``loss`` computes that of so many blank images.
    """
    while not everywhere(_fits(partial(loss, micro_batch), network, optimizer, device), device):
        if micro_batch == 1:
            raise torch.OutOfMemoryError("not one image goes through the network: use a smaller model, or larger GPUs")
        micro_batch = at_most(micro_batch // 2)
        logger.info("Out of memory: trying %d images at once", micro_batch)
    return micro_batch


def largest_by_memory(candidates: Sequence[int], needed: Callable[[int], int], device: torch.device) -> int:
    """The largest of some numbers of images, in rising order, whose bytes fit on the smallest of the ranks' GPUs."""
    room = torch.tensor(torch.cuda.get_device_properties(device).total_memory, device=device)
    if dist.is_initialized():
        dist.all_reduce(room, op=dist.ReduceOp.MIN)
    room_left = GPU_SHARE * (int(room.item()) - GPU_RESERVED)
    return max((n for n in candidates if needed(n) <= room_left), default=1)


def _fits(
    loss: Callable[[], Tensor], network: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> bool:
    """Whether a micro batch's forward and backward pass fit into memory beside the optimiser's moments.

    Leaves no gradients and no moments behind.
    """
    count = 0 if optimizer.state else 2 * sum(p.numel() for p in network.parameters() if p.requires_grad)
    fits = True
    try:
        moments = torch.empty(count, device=device)
        loss().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        del moments
    except torch.OutOfMemoryError:
        fits = False
    network.zero_grad(set_to_none=True)
    if not fits and device.type == "cuda":
        torch.cuda.empty_cache()
    return fits


def distribute(objective: Objective, spec: PretrainSpec, micro_batch: int, device: torch.device) -> nn.Module:
    """The objective, wrapped in DDP and warmed up if several workers train."""
    return distributed(objective, lambda network: network(*_blank(spec, micro_batch, device))[0])


def distributed(objective: nn.Module, loss: Callable[[nn.Module], Tensor]) -> nn.Module:
    """A module, wrapped in DDP and warmed up if several workers train; ``loss`` computes that of blank images.

    DDP reorders its buckets after the first backward pass, and with three ranks or more another order gives other
    rounding. Two discarded passes make every start, fresh or resumed, the same.
    """
    if not dist.is_initialized():
        return objective
    network = DistributedDataParallel(objective, gradient_as_bucket_view=True, forward_sync_buffers=False)
    for _ in range(2):
        loss(network).backward()
    objective.zero_grad(set_to_none=True)
    return network


def _blank(spec: PretrainSpec, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Black images and the order of their patches, in the shapes of a micro batch."""
    model = spec.model
    images = torch.zeros(count, model.in_chans, model.height, model.width, dtype=torch.uint8, device=device)
    return images, torch.arange(model.patches, device=device).repeat(count, 1)
