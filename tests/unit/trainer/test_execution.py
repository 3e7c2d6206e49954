"""How the step runs on a worker: compiled or as written, and how many images at once."""

import logging
from dataclasses import replace

import pytest
import torch
from loops import launch, make_spec, run_loop, weights
from torch._dynamo.utils import counters

from trainer.errors import SpecRefused
from trainer.models.pixels import patchify
from trainer.models.rc_mae import MaskedAutoencoder, make_teacher
from trainer.spec.plan import Schedule
from trainer.training import execution
from trainer.training.optim import make_optimizer
from trainer.training.step import Learner, Objective

CPU = torch.device("cpu")
SMALLEST = {
    "preset": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 8, "in_chans": 1, "embed_dim": 16, "depth": 1,
    "num_heads": 2, "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
}  # fmt: skip


def learner_of(spec, compiled: bool, micro_batch: int) -> Learner:
    torch.manual_seed(0)
    student = MaskedAutoencoder(spec.model)
    teacher = make_teacher(student)
    objective = Objective(spec.method, student, teacher, (0.5,), (0.25,), spec.optimization.precision == "bf16")
    if compiled:
        objective.compile(fullgraph=True, dynamic=False)
    return Learner(student, teacher, make_optimizer(student, spec.optimization), objective, micro_batch, None)


def batches(spec, count: int, size: int):
    generator = torch.Generator().manual_seed(1)
    shape = (size, 1, spec.model.height, spec.model.width)
    for _ in range(count):
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        yield images, torch.rand(size, spec.model.patches, generator=generator).argsort(dim=1)


def decided(caplog, spec, steps: int) -> tuple[bool, str]:
    """Whether the objective of a run of so many steps is compiled, and what was told."""
    objective = learner_of(spec, compiled=False, micro_batch=1).network
    with caplog.at_level(logging.INFO, logger="rcmae"):
        execution.compile_if_it_pays(objective, spec, Schedule(1000, 0, steps, steps), CPU)
    return objective._compiled_call_impl is not None, caplog.text


@pytest.mark.parametrize(
    ("wanted", "steps", "compiled", "told"),
    [
        ("auto", 10, False, "so short a run"),
        ("auto", 10**9, True, "compiled"),
        (True, 10, True, "compiled"),
        (False, 10**9, False, "optimization.compile is false"),
    ],
)
def test_a_long_run_is_compiled_and_a_short_one_is_not_unless_told(caplog, wanted, steps, compiled, told):
    found, said = decided(caplog, make_spec(optimization={"compile": wanted}), steps)
    assert found == compiled
    assert told in said


def test_without_a_compiler_auto_trains_as_written_and_true_is_refused(caplog, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found, said = decided(caplog, make_spec(optimization={"compile": "auto"}), 10**9)
    assert not found
    assert "no C++ compiler" in said
    with pytest.raises(SpecRefused, match=r"optimization\.compile: is true, and this node has no C\+\+ compiler"):
        decided(caplog, make_spec(optimization={"compile": True}), 10)


def apart(spec, micro_batch: int = 8) -> Learner:
    """A learner whose teacher is no longer its student, at weights that hide no mistake."""
    learner = learner_of(spec, compiled=False, micro_batch=micro_batch)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in (*learner.student.parameters(), *learner.teacher.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return learner


def by_the_paper(learner: Learner, spec, images, orders) -> tuple[torch.Tensor, torch.Tensor]:
    """Reconstruction and consistency of images as the paper has them, patch by patch."""
    method = spec.method
    patches = patchify((images / 255 - 0.5) / 0.25, spec.model.patch_size)
    patches = torch.take_along_dim(patches, orders[..., None], 1)
    visible = round(orders.shape[1] * (1 - method.mask_ratio))
    wanted = patches[:, visible:]
    if method.norm_pix_loss:
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6).sqrt()
    said, expected = (network(patches[:, :visible], orders) for network in (learner.student, learner.teacher))
    return (said - wanted).square().mean(), (said - expected.detach()).square().mean()


@pytest.mark.parametrize(
    "method",
    [{}, {"norm_pix_loss": False}, {"mask_ratio": 0.5}, {"consistency_weight": 0.3}, {"consistency_weight": 0.0}],
)
def test_a_step_goes_down_the_gradient_of_both_losses(method):
    spec = make_spec(model=SMALLEST, method=method, optimization={"precision": "fp32"})
    learner, twin = apart(spec), apart(spec)
    ((images, orders),) = batches(spec, 1, 8)
    reconstruction, consistency = by_the_paper(twin, spec, images, orders)
    total = reconstruction + spec.method.consistency_weight * consistency
    total.backward()
    losses, norm = learner.step(images, orders, 1e-3, 0.75, measured=True)
    torch.testing.assert_close(losses, torch.stack([total, reconstruction, consistency]).detach())
    assert not losses.requires_grad
    gradients = [parameter.grad for parameter in twin.student.parameters()]
    for parameter, gradient in zip(learner.student.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(norm, torch.cat([gradient.flatten() for gradient in gradients]).norm())
    # AdamW's first step at this rate, then the teacher's towards where it led
    for group in twin.optimizer.param_groups:
        group["lr"] = 1e-3
    twin.optimizer.step()
    for mine, other in zip(learner.student.parameters(), twin.student.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=0)
    before = apart(spec).teacher.parameters()
    for mine, old, student in zip(learner.teacher.parameters(), before, learner.student.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.75 * old + 0.25 * student)
        assert mine.grad is None


def test_a_batch_in_parts_has_the_losses_and_the_gradient_of_the_whole():
    spec = make_spec(model=SMALLEST, optimization={"precision": "fp32"})
    whole, parts = apart(spec, micro_batch=12), apart(spec, micro_batch=4)
    for images, orders in batches(spec, 2, 12):  # the second one starts from no gradient again
        expected, _ = whole.step(images, orders, 0.0, 1.0, measured=False)
        found, _ = parts.step(images, orders, 0.0, 1.0, measured=False)
        torch.testing.assert_close(found, expected)
        for mine, other in zip(parts.student.parameters(), whole.student.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_gradients_are_clipped_to_the_norm_that_the_spec_names():
    spec = make_spec(model=SMALLEST, optimization={"precision": "fp32"})
    ((images, orders),) = batches(spec, 1, 8)

    def norms(clip: float | None, measured: bool) -> tuple[float | None, float]:
        """What a step tells, and what its update was made of."""
        learner = replace(apart(spec), clip_grad_norm=clip)
        _, told = learner.step(images, orders, 1e-3, 0.9, measured)
        taken = torch.cat([parameter.grad.flatten() for parameter in learner.student.parameters()]).norm()
        return None if told is None else told.item(), taken.item()

    told, whole = norms(None, measured=True)
    assert told == pytest.approx(whole)
    assert norms(None, measured=False) == (None, pytest.approx(whole))
    for measured in (True, False):  # a clipped step's norm is known: it is told as it was before
        assert norms(whole / 4, measured) == pytest.approx((whole, whole / 4), rel=1e-4)
        assert norms(whole * 4, measured) == pytest.approx((whole, whole), rel=1e-4)


def test_a_step_in_bf16_is_the_same_step_less_exact():
    losses = {}
    for precision in ("fp32", "bf16"):
        spec = make_spec(model=SMALLEST, optimization={"precision": precision})
        ((images, orders),) = batches(spec, 1, 8)
        learner = apart(spec)
        losses[precision], _ = learner.step(images, orders, 1e-3, 0.9, measured=False)
        assert {parameter.dtype for parameter in learner.student.parameters()} == {torch.float32}
    torch.testing.assert_close(losses["bf16"], losses["fp32"], atol=0, rtol=0.02)
    assert not torch.equal(losses["bf16"], losses["fp32"])


def test_mae_has_no_teacher_to_agree_with():
    spec = make_spec(model=SMALLEST, method={"name": "mae"}, optimization={"precision": "fp32"})
    student = apart(make_spec(model=SMALLEST)).student
    objective = Objective(spec.method, student, None, (0.5,), (0.25,), bf16=False)
    learner = Learner(student, None, make_optimizer(student, spec.optimization), objective, 8, None)
    ((images, orders),) = batches(spec, 1, 8)
    reconstruction, _ = by_the_paper(apart(make_spec(model=SMALLEST)), spec, images, orders)
    losses, _ = learner.step(images, orders, 1e-3, None, measured=False)
    torch.testing.assert_close(losses, torch.stack([reconstruction, reconstruction, torch.tensor(0.0)]).detach())
    assert losses[0] == losses[1]


class Full(Objective):
    """An objective whose device holds a few images."""

    room = 20

    def forward(self, images, orders):
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images, orders)


@pytest.mark.parametrize(("recorded", "settled"), [(60, 15), (50, 12), (12, 12)])
def test_what_does_not_fit_is_halved_until_it_does_and_leaves_no_trace(recorded, settled):
    """Of a share of 300: from 60 on 30 and 15 are tried, from 50 on 25 and 12."""
    spec = make_spec(model=SMALLEST, optimization={"global_batch_size": 300})
    unsettled = spec.model_copy(
        update={"optimization": spec.optimization.model_copy(update={"micro_batch_size": "auto"})}
    )
    learner = learner_of(spec, compiled=False, micro_batch=1)
    objective = Full(spec.method, learner.student, learner.teacher, (0.5,), (0.25,), bf16=False)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    found = execution.settle_micro_batch(objective, learner.optimizer, unsettled, CPU, recorded)
    assert found == settled
    assert all(p.grad is None for p in objective.parameters())
    assert not learner.optimizer.state
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


def test_a_number_that_the_spec_names_is_not_changed():
    spec = make_spec(model=SMALLEST, optimization={"global_batch_size": 300, "micro_batch_size": 30})
    learner = learner_of(spec, compiled=False, micro_batch=1)
    assert execution.settle_micro_batch(learner.network, learner.optimizer, spec, CPU, recorded=100) == 30


def test_a_resumed_run_takes_as_many_images_at_once_as_before(tmp_path, monkeypatch):
    """The checkpoint tells what was settled, whatever would be settled now."""
    run_loop(make_spec(optimization={"micro_batch_size": 60}), tmp_path, 1, lambda: "pause")
    asked = []

    def settle(*given):
        asked.append(given[-1])
        return given[-1] or 100

    monkeypatch.setattr("trainer.training.loop.settle_micro_batch", settle)
    run_loop(make_spec(), tmp_path, 2)
    assert asked == [60]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_step_is_one_graph_and_learns_as_the_written_one(precision):
    """Accumulation, and an evaluation in between that runs the student for itself, make no further graph."""
    spec = make_spec(model=SMALLEST, optimization={"precision": precision})
    losses = {}
    for compiled in (False, True):
        torch.compiler.reset()
        counters.clear()
        learner, found = learner_of(spec, compiled, micro_batch=8), []
        with torch._dynamo.config.patch(error_on_recompile=True):
            for number, (images, orders) in enumerate(batches(spec, 4, 16)):
                found.append(learner.step(images, orders, 1e-3, 0.9, measured=False)[0])
                if number == 1:
                    with torch.no_grad():
                        learner.student.eval().encode(images.float())
                    learner.student.train()
        losses[compiled] = torch.stack(found)
        assert counters["stats"]["unique_graphs"] == (1 if compiled else 0)
    tolerance = 1e-5 if precision == "fp32" else 1e-2
    torch.testing.assert_close(losses[True], losses[False], atol=tolerance, rtol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_compiled_run_killed_and_resumed_ends_bit_identical(tmp_path, workers):
    spec = make_spec(
        model=SMALLEST, optimization={"epochs": 2, "compile": True, "micro_batch_size": 75},
        resources={"workers": workers}, evaluation={"every_epochs": 1},
    )  # fmt: skip
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = launch(spec, straight)
    launch(spec, broken, attempt=1, die_at=7, after="checkpoints/a1/00000005/manifest.json")
    rest = launch(spec, broken, attempt=2)
    assert min(map(int, rest["loss"])) == 6
    expected, got = weights(straight, whole["checkpoint"]), weights(broken, rest["checkpoint"])
    assert all(torch.equal(value, got[key]) for key, value in expected.items())
