"""The model against transformers' ViTMAE, and the identities of the method."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import ViTMAEConfig, ViTMAEForPreTraining, ViTMAEModel

from trainer.models.pixels import patch_statistics, patchify, take_patches, targets, unpatchify
from trainer.models.rc_mae import MaskedAutoencoder, consistency_loss, make_teacher, reconstruction_loss, update_teacher
from trainer.models.vit import position_embedding
from trainer.spec.pretrain import ModelSpec

SMALL = {
    "img_size": 32, "patch_size": 4, "in_chans": 3, "embed_dim": 48, "depth": 3, "num_heads": 4,
    "decoder_embed_dim": 32, "decoder_depth": 3, "decoder_num_heads": 4,
}  # fmt: skip


def small(**changes) -> ModelSpec:
    return ModelSpec.model_validate(SMALL | changes)


def gather(patches: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return torch.stack([rows[chosen] for rows, chosen in zip(patches, index, strict=True)])


def make_orders(batch: int, patches: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)


def to_hugging_face(weights: dict[str, torch.Tensor], prefix_decoder: str = "decoder.") -> dict[str, torch.Tensor]:
    """Our weights under ViTMAE's names in transformers 5."""
    renamed = {}
    for name, value in weights.items():
        if name in {"mask_token", "decoder_pos_embed"} or name.startswith(
            ("decoder_embed", "decoder_norm", "decoder_pred")
        ):
            renamed[f"{prefix_decoder}{name}"] = value
            continue
        outer = {
            "cls_token": "vit.embeddings.cls_token",
            "pos_embed": "vit.embeddings.position_embeddings",
            "patch_embed.proj.weight": "vit.embeddings.patch_embeddings.projection.weight",
            "patch_embed.proj.bias": "vit.embeddings.patch_embeddings.projection.bias",
            "norm.weight": "vit.layernorm.weight",
            "norm.bias": "vit.layernorm.bias",
        }
        if name in outer:
            renamed[outer[name]] = value
            continue
        stack, index, rest = name.split(".", 2)
        place = "vit.encoder.layer" if stack == "blocks" else "decoder.decoder_layers"
        renamed[f"{place}.{index}.{rest}"] = value
    return renamed


def load_into(reference: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, str]:
    """Fill a ViTMAE with our weights, whatever its version calls a layer; gives our name of each of its parameters."""
    ours: dict[str, str] = {}
    state = reference.state_dict()
    flat = to_hugging_face(weights)
    back = dict(zip(flat, weights, strict=True))
    for name, value in flat.items():
        for candidate, part in spellings(name, value):
            if candidate in state:
                state[candidate] = part
                ours[candidate] = back[name]
    missing = set(state) - set(ours)
    assert not missing, missing
    reference.load_state_dict(state)
    return ours


def spellings(name: str, value: torch.Tensor):
    """The names one of our layers goes by in transformers 4 and 5, with its part of the value."""
    yield name, value
    five = name.replace("vit.encoder.layer.", "vit.layers.")
    swaps = {
        ".norm1.": [".layernorm_before."], ".norm2.": [".layernorm_after."],
        ".attn.proj.": [".attention.output.dense.", ".attention.o_proj."],
        ".mlp.fc1.": [".intermediate.dense.", ".mlp.fc1."], ".mlp.fc2.": [".output.dense.", ".mlp.fc2."],
    }  # fmt: skip
    for base in {name, five}:
        for old, new in swaps.items():
            if old in base:
                for choice in new:
                    yield base.replace(old, choice), value
        if ".attn.qkv." in base:
            for part, (long, short) in zip(
                value.chunk(3), [("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")], strict=True
            ):
                yield base.replace(".attn.qkv.", f".attention.attention.{long}."), part
                yield base.replace(".attn.qkv.", f".attention.{short}."), part
        yield base, value


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_loss_and_gradients_equal_those_of_transformers(norm_pix_loss, channels):
    spec = small(in_chans=channels)
    torch.manual_seed(0)
    model = MaskedAutoencoder(spec)
    with torch.no_grad():  # no weight at a value that would hide a mistake
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    reference = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=spec.embed_dim,
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.num_heads,
            intermediate_size=4 * spec.embed_dim,
            image_size=32,
            patch_size=4,
            num_channels=channels,
            decoder_hidden_size=spec.decoder_embed_dim,
            decoder_num_hidden_layers=spec.decoder_depth,
            decoder_num_attention_heads=spec.decoder_num_heads,
            decoder_intermediate_size=4 * spec.decoder_embed_dim,
            layer_norm_eps=1e-6,
            mask_ratio=0.75,
            norm_pix_loss=norm_pix_loss,
        )
    )
    ours = load_into(reference, {k: v.clone() for k, v in model.state_dict().items()})
    images = torch.randn(6, channels, 32, 32)
    noise = torch.rand(6, spec.patches)
    orders, visible = noise.argsort(dim=1), spec.patches // 4

    patches = take_patches(images, orders, 4)
    prediction = model(patches[:, :visible], orders)
    loss = reconstruction_loss(prediction, targets(patches[:, visible:], norm_pix_loss))
    loss.backward()
    expected = reference(images, noise=noise)
    expected.loss.backward()

    assert loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    full = gather(expected.logits, orders[:, visible:])
    torch.testing.assert_close(prediction, full, atol=1e-5, rtol=1e-5)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    compared = 0
    for name, parameter in reference.named_parameters():
        if parameter.grad is None:  # its position embeddings
            continue
        gradient = gradients[ours[name]]
        if gradient.shape != parameter.grad.shape:  # query, key or value out of our joint projection
            part = next(i for i, words in enumerate((("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")))
                        if any(word in name for word in words))  # fmt: skip
            gradient = gradient.chunk(3)[part]
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4, msg=name)
        compared += 1
    assert compared > 80


def test_position_embedding_equals_transformers():
    reference = ViTMAEModel(ViTMAEConfig(hidden_size=48, num_attention_heads=4, image_size=32, patch_size=4))
    reference.embeddings.patch_embeddings.projection._is_hf_initialized = False  # its own start leaves zeros
    reference.embeddings.initialize_weights()
    expected = reference.embeddings.position_embeddings
    assert expected.std() > 0.1
    torch.testing.assert_close(position_embedding((8, 8), 48), expected.detach(), atol=1e-6, rtol=0)


def test_position_embedding_of_a_wide_grid_tells_rows_from_columns():
    embedding = position_embedding((2, 5), 16)[0, 1:].view(2, 5, 16)
    assert torch.equal(embedding[0, :, :8], embedding[1, :, :8])  # the same column
    assert torch.equal(embedding[:, 0, 8:], embedding[:, 4, 8:])  # the same row
    assert len({tuple(row.tolist()) for row in embedding.view(10, 16)}) == 10


@pytest.mark.parametrize(("size", "patch", "channels"), [((32, 32), 4, 3), ((24, 40), 8, 1), ((21, 14), 7, 5)])
def test_patches_go_there_and_back(size, patch, channels):
    images = torch.randn(2, channels, *size)
    patches = patchify(images, patch)
    grid = (size[0] // patch, size[1] // patch)
    assert patches.shape == (2, grid[0] * grid[1], patch * patch * channels)
    assert torch.equal(unpatchify(patches, patch, grid, channels), images)
    # the second patch of the first row, its second row's first value of each channel
    assert torch.equal(patches[0, 1].view(patch, patch, channels)[1, 0], images[0, :, 1, patch])
    index = make_orders(2, patches.shape[1])[:, :3]
    assert torch.equal(take_patches(images, index, patch), gather(patches, index))
    other_memory = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(take_patches(other_memory, index, patch), gather(patches, index))


def test_patch_embedding_equals_its_convolution():
    model = MaskedAutoencoder(small(img_size=[16, 32]))
    images = torch.randn(2, 3, 16, 32)
    expected = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.patch_embed(patchify(images, 4)), expected, atol=1e-5, rtol=1e-5)


def test_prediction_does_not_see_masked_pixels():
    torch.manual_seed(0)
    model = MaskedAutoencoder(small()).eval()
    images, orders = torch.randn(2, 3, 32, 32), make_orders(2, 64)
    before = model(take_patches(images, orders, 4)[:, :16], orders)
    patches = patchify(images, 4)
    patches.scatter_(1, orders[:, 16:, None].expand(-1, -1, 48), 7.0)
    changed = take_patches(unpatchify(patches, 4, (8, 8), 3), orders, 4)
    assert torch.equal(model(changed[:, :16], orders), before)


def test_parameter_count_of_the_plan_is_the_models():
    for spec in (small(), small(img_size=[16, 32], in_chans=1, patch_size=8)):
        model = MaskedAutoencoder(spec)
        decoder = sum(p.numel() for n, p in model.named_parameters() if n.startswith("decoder") or n == "mask_token")
        total = sum(p.numel() for p in model.parameters())
        assert spec.parameters == (total - decoder, decoder)


def test_targets_are_normalised_with_the_unbiased_variance():
    patches = patchify(torch.randn(2, 3, 8, 8, dtype=torch.float64) * 3 + 1, 4)
    mean, deviation = patches.mean(-1, keepdim=True), (patches.var(-1, unbiased=True, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(targets(patches, True), (patches - mean) / deviation)
    torch.testing.assert_close(patch_statistics(patches), (mean, deviation))
    assert torch.equal(targets(patches, False), patches)
    assert torch.equal(targets(torch.full((1, 1, 48), 0.3), True), torch.zeros(1, 1, 48))  # a flat patch


@given(gamma=st.floats(0, 10), seed=st.integers(0, 2**31))
def test_both_losses_are_one_distance_to_a_mixed_target(gamma, seed):
    """``Lr + g Lc = (1+g) |s - ybar|^2 + g/(1+g) |y - t|^2`` with ``ybar = (y + g t)/(1+g)``."""
    generator = torch.Generator().manual_seed(seed)
    s, y, t = torch.randn(3, 2, 5, 12, generator=generator, dtype=torch.float64)

    def mse(a, b):
        return (a - b).square().mean().item()

    mixed = (y + gamma * t) / (1 + gamma)
    left = mse(s, y) + gamma * mse(s, t)
    assert left == pytest.approx((1 + gamma) * mse(s, mixed) + gamma / (1 + gamma) * mse(y, t), rel=1e-12)
    # the losses of the trainer are these distances (they work in fp32)
    ours = reconstruction_loss(s, y) + gamma * consistency_loss(s, t)
    assert ours.item() == pytest.approx(left, rel=1e-5)


def test_teacher_lags_by_the_decayed_sum_of_updates():
    """Linear identity of the paper's analysis: ``S_t - T_t = -sum_i a^i u_{t-i}`` in float64, for any updates."""
    a = 0.9
    student = torch.nn.Linear(6, 4, bias=False).double()
    teacher = torch.nn.Linear(6, 4, bias=False).double()
    teacher.load_state_dict(student.state_dict())
    updates = []
    for seed in range(12):
        update = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            student.weight.sub_(update)
        updates.append(update)
        update_teacher(teacher, student, a)
    # u_t is the newest update; the teacher has already moved towards it once
    expected = -sum(a ** (i + 1) * u for i, u in enumerate(reversed(updates)))
    torch.testing.assert_close(student.weight - teacher.weight, expected, atol=1e-13, rtol=0)


def test_consistency_gradient_subtracts_past_directions_by_similarity():
    """The gradient of the consistency loss is ``(S - T) x x^T``: past inputs count by their similarity to x."""
    x = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    past = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]], dtype=torch.float64)
    residual = torch.tensor([2.0, -1.0], dtype=torch.float64)
    effects = []
    for before in past:
        lag = -0.9 * torch.outer(residual, before)  # S - T after one update along residual x before
        effects.append(torch.sum((lag @ torch.outer(x, x)) * torch.outer(residual, x)).item())
    assert effects[0] < 0  # similar: removed
    assert effects[1] == 0  # orthogonal: untouched
    assert effects[2] > 0  # opposed: added


def test_teacher_starts_as_a_copy_and_follows_without_gradients():
    torch.manual_seed(0)
    student = MaskedAutoencoder(small())
    teacher = make_teacher(student)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    start = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in student.parameters():
            p.add_(1.0)
    update_teacher(teacher, student, 0.75)
    for before, after in zip(start, teacher.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.25)
    update_teacher(teacher, student, 1.0)
    for before, after in zip(start, teacher.parameters(), strict=True):
        torch.testing.assert_close(after, before + 0.25)


def test_initial_weights():
    torch.manual_seed(0)
    model = MaskedAutoencoder(small(embed_dim=96, num_heads=4))
    weight = model.patch_embed.proj.weight
    assert weight.abs().max().item() <= math.sqrt(6 / (48 + 96))
    assert weight.std().item() == pytest.approx(math.sqrt(6 / (48 + 96) / 3), rel=0.05)
    assert all(not m.bias.any() for m in model.modules() if isinstance(m, torch.nn.Linear))
    for token in (model.cls_token, model.mask_token):
        assert 0.013 < token.std().item() < 0.027
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-6}, "as in ViT, where torch's own is 1e-5"
