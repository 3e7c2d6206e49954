"""Networks, losses and optimisers of supervised training against other implementations and their definitions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from finetunings import MODEL, encoder_weights, training
from torch import nn
from transformers import ViTForImageClassification
from worlds import on_ranks

from trainer.evaluation.features import View
from trainer.export.huggingface import export_vit
from trainer.finetuning.batches import Augmentation
from trainer.finetuning.mixing import draw_branches
from trainer.finetuning.network import AttentiveHead, LinearHead, make_classifier
from trainer.finetuning.optim import Lars, layer_groups, make_optimizer, set_learning_rate
from trainer.finetuning.state import moving_average
from trainer.finetuning.step import SupervisedLearner, SupervisedObjective
from trainer.spec.finetuning import AttentiveSettings, FinetuneSettings, PaperLinearSettings
from trainer.training.optim import learning_rate

PLAIN = {
    "epochs": 10, "batch_size": 8, "randaugment": None, "mixup": 0, "cutmix": 0, "erasing": 0, "label_smoothing": 0.1,
    "drop_path": 0, "base_lr": 1e-2,
}  # fmt: skip
LABELS = np.array([1, 0, 2, 2, 1, 0, 0, 1])


def learner(settings, classifier, *, micro_batch=8, average=None):
    settings = settings.resolved(MODEL, 8)
    augmentation = Augmentation(settings, View((16, 16), (0.5,), (0.25,)), 0, LABELS, MODEL.depth)
    smoothing = getattr(settings, "label_smoothing", 0.0)
    return SupervisedLearner(
        classifier=classifier, average=average, optimizer=make_optimizer(settings, classifier),
        network=SupervisedObjective(classifier.trained, smoothing, bf16=False), augmentation=augmentation,
        micro_batch=micro_batch, batch=8, world=1, bf16=False, clip_grad_norm=None, ema=0.9,
    )  # fmt: skip


def crops() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 1, 16, 16), dtype=np.uint8))


def reference(classifier, folder) -> ViTForImageClassification:
    """transformers' network with the weights of ours."""
    encoder = {name: value.detach() for name, value in classifier.encoder.state_dict().items()}
    export_vit(encoder, MODEL, (0.5,), (0.25,), folder)
    network = ViTForImageClassification.from_pretrained(folder, num_labels=3)
    with torch.no_grad():
        network.classifier.weight.copy_(classifier.head.weight)
        network.classifier.bias.copy_(classifier.head.bias)
    return network


def logits_of(network, pixels, pooling: str):
    """For mean pooling with the head that the paper fine-tunes, which transformers does not have."""
    if pooling == "cls":
        return network(pixels).logits
    network.vit.layernorm = nn.Identity()
    tokens = network.vit(pixels).last_hidden_state[:, 1:]
    return network.classifier(F.layer_norm(tokens.mean(dim=1), (32,), eps=1e-6))


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_step_of_fine_tuning_has_the_loss_and_the_gradient_of_transformers(tmp_path, pooling):
    settings = FinetuneSettings(**PLAIN, pooling=pooling)
    # All weights are different, so that each parameter is known by its values, whatever its name there.
    weights = {name: value + 0.1 * torch.randn_like(value) for name, value in encoder_weights().items()}
    classifier = make_classifier(settings.resolved(MODEL, 8), MODEL, weights, 3, seed=0)
    nn.init.normal_(classifier.head.weight)  # the initial one is close to 0, and so would be the gradients
    network = reference(classifier, tmp_path / "hf")
    logits = logits_of(network, (crops() / 255 - 0.5) / 0.25, pooling)
    expected = F.cross_entropy(logits, torch.from_numpy(LABELS), label_smoothing=0.1)
    expected.backward()
    theirs = {tuple(p.detach().flatten().tolist()): p.grad for p in network.parameters() if p.grad is not None}

    loss, norm = learner(settings, classifier, micro_batch=4).step(crops(), torch.arange(8), 0, lr=0.0, measured=True)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    compared = 0
    for name, parameter in classifier.named_parameters():
        if parameter.grad is None or name.startswith("norm."):
            continue
        parts = 3 if "qkv" in name else 1
        for part, (value, gradient) in enumerate(zip(parameter.chunk(parts), parameter.grad.chunk(parts), strict=True)):
            other = theirs[tuple(value.detach().flatten().tolist())]
            if (parts, part, value.ndim) != (3, 1, 1):  # the keys' bias: 0 but for rounding, and ours leaves it alone
                torch.testing.assert_close(gradient.flatten(), other.flatten(), atol=1e-5, rtol=1e-4, msg=name)
            compared += 1
    assert compared == len(theirs)
    assert norm > 0.1


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    """With pairs that mix and paths that drop, and a last part that is shorter."""
    settings = FinetuneSettings(**{**PLAIN, "mixup": 0.8, "cutmix": 1.0, "drop_path": 0.5, "erasing": 0.5})
    gradients = []
    for micro_batch in (8, 6):
        classifier = make_classifier(settings.resolved(MODEL, 8), MODEL, encoder_weights(), 3, seed=0)
        nn.init.ones_(classifier.head.weight[:1])
        learner(settings, classifier, micro_batch=micro_batch).step(crops(), torch.arange(8), 0, 0.0, measured=False)
        gradients.append(classifier.encoder.blocks[0].mlp.fc1.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    assert gradients[0].abs().max() > 0


def test_the_moving_average_follows_the_weights_by_its_decay():
    settings = FinetuneSettings(**PLAIN, ema=0.9)
    classifier = make_classifier(settings.resolved(MODEL, 8), MODEL, encoder_weights(), 3, seed=0)
    average = moving_average(classifier)
    before = classifier.head.weight.detach().clone()
    learner(settings, classifier, average=average).step(crops(), torch.arange(8), 0, lr=1e-2, measured=False)
    assert not torch.equal(before, classifier.head.weight)
    torch.testing.assert_close(average.head.weight, 0.9 * before + 0.1 * classifier.head.weight.detach())


# --- heads ------------------------------------------------------------------------------------------------------------


def test_features_are_standardised_as_by_batchnorm():
    torch.manual_seed(0)
    head, reference = LinearHead(6, 3), nn.BatchNorm1d(6, affine=False, eps=1e-6)
    for _ in range(3):
        x = torch.randn(20, 6) * torch.arange(1, 7) + 2
        head.observe(x)
        torch.testing.assert_close(head(x), head.linear(reference(x)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.running_mean, reference.running_mean)
    torch.testing.assert_close(head.running_variance, reference.running_var)
    head.eval(), reference.eval()
    torch.testing.assert_close(head(x), head.linear(reference(x)), atol=1e-5, rtol=1e-5)


def test_statistics_of_a_batch_are_those_of_all_ranks(tmp_path):
    (alone,) = on_ranks(1, tmp_path / "1", _observed)
    for found in on_ranks(3, tmp_path / "3", _observed):
        np.testing.assert_allclose(found, alone, rtol=1e-6)


def _observed(ranks):
    features = torch.arange(60.0).view(20, 3).square()
    bounds = {1: [0, 20], 3: [0, 4, 13, 20]}[ranks.world]
    head = LinearHead(3, 2)
    head.observe(features[bounds[ranks.rank] : bounds[ranks.rank + 1]])
    return torch.cat([head.batch_mean, head.batch_variance, head.running_variance]).numpy()


def test_the_query_attends_as_multi_head_attention_does():
    torch.manual_seed(0)
    head, reference = AttentiveHead(16, 4, 3), nn.MultiheadAttention(16, 4, batch_first=True)
    nn.init.normal_(head.query)
    tokens = torch.randn(5, 7, 16)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([torch.eye(16), head.kv.weight]))
        reference.out_proj.weight.copy_(torch.eye(16))
    seen = head.norm(tokens)
    gathered, _ = reference(head.query.expand(5, 1, 16), seen, seen)
    torch.testing.assert_close(head(tokens), head.linear(gathered[:, 0]), atol=1e-5, rtol=1e-5)


# --- optimisers -------------------------------------------------------------------------------------------------------


def test_lars_is_its_definition():
    torch.manual_seed(0)
    matrix, bias = (nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((3, 4), (3,)))
    zero = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    optimizer = Lars([matrix, bias, zero], momentum=0.9, trust=1e-3, weight_decay=0.1, lr=0.5)
    w, b, z = matrix.detach().clone(), bias.detach().clone(), zero.detach().clone()
    speeds = [torch.zeros_like(each) for each in (w, b, z)]
    for _ in range(3):
        for each in (matrix, bias, zero):
            each.grad = torch.randn_like(each)
        decayed = matrix.grad + 0.1 * w
        rate = 1e-3 * w.norm() / decayed.norm()
        filled = zero.grad + 0.1 * z
        filled = filled if z.norm() == 0 else filled * 1e-3 * z.norm() / filled.norm()
        speeds = [0.9 * v + d for v, d in zip(speeds, (rate * decayed, bias.grad, filled), strict=True)]
        w, b, z = (each - 0.5 * v for each, v in zip((w, b, z), speeds, strict=True))
        optimizer.step()
    for found, expected in zip((matrix, bias, zero), (w, b, z), strict=True):
        torch.testing.assert_close(found.detach(), expected, atol=1e-15, rtol=1e-13)


def test_learning_rates_decay_by_layer_from_the_head_down():
    settings = FinetuneSettings(layer_decay=0.5).resolved(MODEL, 8)
    classifier = make_classifier(settings, MODEL, None, 3, seed=0)
    optimizer = make_optimizer(settings, classifier)
    set_learning_rate(optimizer, 8.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in classifier.named_parameters() if p.requires_grad}
    expected = {"encoder.cls_token": 1, "encoder.pos_embed": 1, "encoder.patch_embed.proj.weight": 1, "head.bias": 8,
                "encoder.blocks.0.mlp.fc1.weight": 2, "encoder.blocks.1.norm1.bias": 4, "norm.weight": 8}  # fmt: skip
    assert {name: by_name[name] for name in expected} == expected
    assert len(rates) == len(by_name), "each parameter is in one group"
    undecayed = {name for name, p in classifier.named_parameters() if p.requires_grad and decay[id(p)] == 0}
    assert undecayed == {
        name for name, p in classifier.named_parameters()
        if p.requires_grad and (p.ndim == 1 or name in {"encoder.cls_token", "encoder.pos_embed"})
    }  # fmt: skip
    assert set(decay.values()) == {0.0, 0.05}


def test_the_query_of_the_attentive_probe_has_no_decay():
    settings = AttentiveSettings().resolved(MODEL, 8)
    classifier = make_classifier(settings, MODEL, None, 3, seed=0)
    groups = layer_groups(classifier, 0.1, 1.0)
    assert {group["scale"] for group in groups} == {1.0}
    plain = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    assert id(classifier.head.query) in plain
    assert id(classifier.head.kv.weight) not in plain
    assert len([p for group in groups for p in group["params"]]) == 7, "the encoder's are none of them"


def test_the_learning_rate_rises_to_the_peak_and_falls_to_the_least():
    settings = PaperLinearSettings(epochs=50, batch_size=512, min_lr=0.01).resolved(MODEL, 5120)
    assert learning_rate(settings, 0, 10) == 0
    assert learning_rate(settings, 100, 10) == pytest.approx(0.2)
    assert learning_rate(settings, 500, 10) == pytest.approx(0.01)


# --- dropped paths ----------------------------------------------------------------------------------------------------


def test_paths_drop_with_a_probability_that_rises_with_depth():
    samples = np.arange(20_000)
    factors = draw_branches(0.4, 5, seed=1, epoch=2, samples=samples)
    assert factors.shape == (20_000, 5, 2)
    for block, rate in enumerate((0, 0.1, 0.2, 0.3, 0.4)):
        values = factors[:, block]
        assert set(np.unique(values)) <= {np.float32(0), np.float32(1 / (1 - rate))}
        assert (values == 0).mean() == pytest.approx(rate, abs=0.01)
    assert factors[:, 4].mean() == pytest.approx(1, abs=0.02), "the expectation is that of the whole network"
    correlation = np.corrcoef(factors[:, 3:].reshape(20_000, 4).T)
    assert np.abs(correlation - np.eye(4)).max() < 0.03
    again = draw_branches(0.4, 5, seed=1, epoch=2, samples=samples[::-1])
    assert np.array_equal(again[::-1], factors), "an image's paths do not depend on the batch"
    assert not np.array_equal(draw_branches(0.4, 5, seed=1, epoch=3, samples=samples), factors)


def test_a_dropped_branch_leaves_the_tokens_as_they_are():
    classifier = make_classifier(FinetuneSettings().resolved(MODEL, 8), MODEL, encoder_weights(), 3, seed=0)
    pixels = torch.randn(2, 1, 16, 16)
    kept = torch.ones(2, 2, 2)
    dropped = kept.clone()
    dropped[1] = 0
    before, _, last = classifier.encoder.states(pixels, dropped)
    assert torch.equal(last[1], before[1])
    *_, whole = classifier.encoder.states(pixels)
    assert torch.equal(last[0], whole[0])


def test_a_head_that_does_not_divide_the_width_is_refused_before_training():
    with pytest.raises(ValueError, match=r"heads: must divide the encoder's width 32 \(given: 5\)"):
        training(AttentiveSettings(heads=5)).settings.resolved(MODEL, 8)
