"""Decay groups, schedules and AdamW."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.models.rc_mae import MaskedAutoencoder
from trainer.spec.pretrain import ModelSpec, OptimizationSpec, TeacherSpec
from trainer.training.optim import learning_rate, make_optimizer, parameter_groups, teacher_momentum

TINY = {
    "img_size": 16, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2,
    "decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2,
}  # fmt: skip


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    model = MaskedAutoencoder(ModelSpec.model_validate(TINY))
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [{named[id(parameter)] for parameter in group["params"]} for group in (decayed, plain)]
    assert groups[0] | groups[1] == set(named.values())
    assert not groups[0] & groups[1]
    assert sum(len(group["params"]) for group in (decayed, plain)) == len(named)
    for name, parameter in model.named_parameters():
        assert (name in groups[1]) == (name.endswith("bias") or parameter.ndim == 1), name
    assert {"blocks.1.attn.qkv.weight", "patch_embed.proj.weight", "cls_token", "mask_token"} <= groups[0]
    assert {"blocks.0.norm1.weight", "norm.bias", "decoder_pred.bias"} <= groups[1]


def test_fixed_parameters_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["params"][0] is model[1].weight
    assert plain["params"][0] is model[1].bias
    assert (len(decayed["params"]), len(plain["params"])) == (1, 1)


PAPER = OptimizationSpec()
PER_EPOCH = 312
PEAK = 1.5e-4 * 4096 / 256


@pytest.mark.parametrize(
    ("epoch", "share"),
    [(0, 0), (10, 0.25), (20, 0.5), (40, 1), (40 + 390, 0.5 * (1 + math.sqrt(0.5))), (40 + 780, 0.5), (1600, 0)],
)
def test_the_papers_learning_rate(epoch, share):
    assert learning_rate(PAPER, epoch * PER_EPOCH, PER_EPOCH) == pytest.approx(PEAK * share, abs=1e-12)


def test_the_learning_rate_is_set_at_every_step():
    rates = [learning_rate(PAPER, step, PER_EPOCH) for step in range(3)]
    assert rates == pytest.approx([PEAK * step / (40 * PER_EPOCH) for step in range(3)])
    late = [learning_rate(PAPER, 50 * PER_EPOCH + step, PER_EPOCH) for step in range(3)]
    assert late[0] > late[1] > late[2]


def test_the_learning_rate_ends_at_its_minimum():
    spec = OptimizationSpec(epochs=10, warmup_epochs=2.0, global_batch_size=256, base_lr=1e-3, min_lr=1e-5)
    assert learning_rate(spec, 20, 10) == pytest.approx(1e-3)
    assert learning_rate(spec, 60, 10) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(spec, 100, 10) == pytest.approx(1e-5)


@given(epochs=st.integers(1, 50), share=st.floats(0, 1), per_epoch=st.integers(1, 20), minimum=st.floats(0, 1e-5))
def test_the_learning_rate_rises_then_falls_within_its_bounds(epochs, share, per_epoch, minimum):
    spec = OptimizationSpec(epochs=epochs, warmup_epochs=share * epochs, min_lr=minimum)
    rates = [learning_rate(spec, step, per_epoch) for step in range(epochs * per_epoch)]
    assert all(0 <= rate <= spec.peak_lr * (1 + 1e-9) for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if share == 0:
        assert rates[0] == pytest.approx(spec.peak_lr)


def test_the_momentum_rises_along_a_half_cosine_over_all_steps():
    teacher, steps = TeacherSpec(), 1600 * PER_EPOCH
    assert teacher_momentum(teacher, 0, steps) == pytest.approx(0.996, abs=1e-12)
    assert teacher_momentum(teacher, steps // 4, steps) == pytest.approx(1 - 0.004 * 0.5 * (1 + math.sqrt(0.5)))
    assert teacher_momentum(teacher, steps // 2, steps) == pytest.approx(0.998)
    assert teacher_momentum(teacher, steps, steps) == 1
    # By the step of the whole training: an epoch's first step does not start over.
    starts = [teacher_momentum(teacher, epoch * PER_EPOCH, steps) for epoch in range(0, 1601, 100)]
    assert starts == sorted(set(starts))


def test_the_momentum_ends_where_it_should():
    teacher = TeacherSpec(momentum=0.9, final_momentum=0.99)
    values = [teacher_momentum(teacher, step, 10) for step in range(11)]
    assert (values[0], values[5], values[10]) == pytest.approx((0.9, 0.945, 0.99))
    assert values == sorted(values)


def test_a_constant_momentum_is_the_same_at_every_step():
    teacher = TeacherSpec.model_validate({"schedule": "constant", "momentum": 0.99})
    assert {teacher_momentum(teacher, step, 100) for step in range(101)} == {0.99}


def test_the_optimiser_takes_the_steps_of_adamw():
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    spec = OptimizationSpec(weight_decay=0.3, betas=(0.8, 0.9))
    optimizer = make_optimizer(model, spec)
    assert all(group["fused"] for group in optimizer.param_groups)
    expected = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    first = {name: torch.zeros_like(value) for name, value in expected.items()}
    second = {name: torch.zeros_like(value) for name, value in expected.items()}
    for step, rate in enumerate([0.1, 0.05, 0.2], start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for name, parameter in model.named_parameters():
            gradient = torch.randn_like(parameter)
            parameter.grad = gradient
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            decay = 0.3 if name == "weight" else 0.0
            unbiased = first[name] / (1 - 0.8**step), second[name] / (1 - 0.9**step)
            expected[name] = expected[name] * (1 - rate * decay) - rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-10, atol=1e-12)


def test_at_a_rate_of_zero_nothing_moves():
    model = nn.Linear(2, 2)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = make_optimizer(model, PAPER)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
