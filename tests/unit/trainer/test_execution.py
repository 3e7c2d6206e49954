"""How the step runs on a worker: compiled or as written, and how many images at once."""

import logging

import pytest
import torch
from loops import launch, make_spec, run_loop, weights
from torch._dynamo.utils import counters

from trainer.errors import SpecRefused
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
