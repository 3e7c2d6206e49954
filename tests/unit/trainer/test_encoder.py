"""The encoder alone: its weights, its layers and its class token's attention, against transformers' ViT."""

import hashlib

import pytest
import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel

from trainer.models.encoder import Encoder
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.protocol.tensor_names import hf_names
from trainer.spec.pretrain import ModelSpec

SMALL = {
    "img_size": [16, 24], "patch_size": 4, "in_chans": 3, "embed_dim": 32, "depth": 3, "num_heads": 4,
    "decoder_embed_dim": 16, "decoder_depth": 2, "decoder_num_heads": 2,
}  # fmt: skip
SPEC = ModelSpec.model_validate(SMALL)
INITIAL = "fc24736f28d624652fb56e3ab3b42be4ae8270415c95925b0ec4e6485ff40397"
"""sha256 of the initial weights of seed 0, names and values in their order."""


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def make(kind: type[Encoder], seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return kind(SPEC).eval()


def digest(model: Encoder) -> str:
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        sha.update(name.encode() + value.numpy().tobytes())
    return sha.hexdigest()


def as_transformers(encoder: Encoder) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, value in encoder.state_dict().items():
        names = hf_names(name)
        tensors |= dict(zip(names, value.chunk(len(names)), strict=True))
    return {name: value.contiguous() for name, value in tensors.items()}


def test_a_seed_gives_the_initial_weights_that_it_always_gave():
    """Runs of earlier versions start again from the same weights."""
    assert digest(make(MaskedAutoencoder)) == INITIAL


def test_an_encoder_is_the_part_of_a_masked_autoencoder_with_the_same_names():
    encoder, whole = make(Encoder), make(MaskedAutoencoder)
    state = {name: value for name, value in whole.state_dict().items() if name in encoder.state_dict()}
    assert set(whole.state_dict()) - set(state) == {
        name for name in whole.state_dict() if name.startswith("decoder") or name == "mask_token"
    }
    encoder.load_state_dict(state)
    pictures = torch.rand(2, 3, 16, 24)
    assert torch.equal(encoder.encode(pictures), whole.encode(pictures))


@torch.no_grad()
def test_layers_and_attention_are_those_of_transformers(images, tmp_path):
    """The class token's attention and every block's tokens, which its `ViTModel` computes from the same weights."""
    encoder = make(Encoder)
    config = ViTConfig(
        image_size=(16, 24), patch_size=4, num_channels=3, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=128, layer_norm_eps=1e-6,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    save_file(as_transformers(encoder), tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference = ViTModel.from_pretrained(tmp_path, add_pooling_layer=False, attn_implementation="eager").eval()
    output = reference(images, output_hidden_states=True, output_attentions=True)
    expected = [reference.layernorm(state) for state in output.hidden_states]
    for number, tokens in zip((3, 1, 2), encoder.layers(images, [3, 1, 2]), strict=True):
        torch.testing.assert_close(tokens, expected[number], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.attention(images), output.attentions[-1][:, :, 0], atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_the_last_layer_is_what_encode_gives(images):
    encoder = make(MaskedAutoencoder)
    (last,) = encoder.layers(images, [3])
    assert torch.equal(last, encoder.encode(images))
    torch.testing.assert_close(encoder.attention(images).sum(dim=-1), torch.ones(3, 4))


@pytest.mark.parametrize("number", [0, 4])
def test_a_block_that_there_is_not_is_refused(images, number):
    with pytest.raises(ValueError, match=f"there is no block {number}: the blocks are 1 to 3"):
        make(Encoder).layers(images, [number])
