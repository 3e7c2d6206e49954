"""Features of images: what is pooled, and the same bits for any number of workers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import on_ranks

from trainer.agreement import Agreement
from trainer.data.cache import Cache
from trainer.data.dataset import DatasetContext, open_images
from trainer.data.images import Images
from trainer.errors import DataError
from trainer.evaluation.features import BLOCK, ROUND, View, extract
from trainer.evaluation.ranks import Ranks, alone
from trainer.models.encoder import Encoder
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.spec.dataset import DatasetSpec
from trainer.spec.pretrain import ModelSpec

MODEL = ModelSpec.model_validate(
    {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 16, "depth": 3, "num_heads": 2}
    | {"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2}
)
VIEW = View((8, 8), (0.4,), (0.3,))
SETTINGS = {"pooling": "mean", "layers": [3], "threads": 2, "bf16": False, "device": torch.device("cpu")}


def digits() -> Images:
    dataset = DatasetSpec.model_validate({"uri": "builtin://digits"})
    return open_images(dataset, 1, (8, 8), DatasetContext(Cache(Path("unused")), 1, Agreement(1), 0))


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(MODEL)


def digit_features(ranks: Ranks, count: int, settings: dict) -> dict[int, np.ndarray]:
    found = extract(encoder(), digits(), np.arange(count) % 1797, VIEW, ranks=ranks, **SETTINGS | settings)
    return {layer: features.numpy() for layer, features in found.items()}


def normal(rows: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(digits().fitted(rows, (8, 8))).float() / 255 - 0.4) / 0.3


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls", "attention"])
def test_what_is_pooled_of_each_layer(pooling):
    found = digit_features(alone(), 70, {"pooling": pooling, "layers": [2, 3, 1]})
    network, images = encoder(), normal(np.arange(70))
    attention = network.attention(images)[:, :, 1:].mean(dim=1)
    attention /= attention.sum(dim=1, keepdim=True)
    assert list(found) == [2, 3, 1]
    for layer, tokens in zip((1, 2, 3), network.layers(images, [1, 2, 3]), strict=True):
        expected = {
            "mean": tokens[:, 1:].mean(dim=1),
            "cls": tokens[:, 0],
            "attention": torch.einsum("bl,bld->bd", attention, tokens[:, 1:]),
        }
        np.testing.assert_allclose(found[layer], expected[pooling].numpy(), atol=1e-5)
        assert found[layer].dtype == np.float32


@pytest.mark.parametrize("count", [1, BLOCK + 1, 3 * BLOCK, 2 * ROUND * BLOCK + 7])
def test_features_are_the_same_bits_for_any_number_of_workers(tmp_path, count):
    """With fewer blocks than ranks, a short last block, and more blocks than the ranks exchange at once."""
    settings = {"layers": [1, 3]}
    expected = digit_features(alone(), count, settings)
    assert expected[3].shape == (count, 16)
    for world in (1, 2, 3):
        for found in on_ranks(world, tmp_path / str(world), digit_features, count, settings):
            for layer in settings["layers"]:
                np.testing.assert_array_equal(found[layer], expected[layer])


def test_bf16_is_used_only_where_it_is_wanted():
    exact, rounded = (digit_features(alone(), 20, {"bf16": bf16})[3] for bf16 in (False, True))
    assert 1e-5 < np.abs(rounded - exact).max() < 0.1


def test_a_network_in_training_is_measured_in_evaluation_mode_and_stays_in_training():
    network = MaskedAutoencoder(MODEL).train()
    modes: list[bool] = []
    network.blocks[0].register_forward_hook(lambda module, *_: modes.append(module.training))
    progress: list[int] = []
    extract(network, digits(), np.arange(100), VIEW, ranks=alone(), progress=progress.append, **SETTINGS)
    assert modes == [False, False]
    assert network.training
    assert progress == [BLOCK, 100]


def test_images_are_changed_before_the_network_sees_them():
    def inverted(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.where((rows % 2 == 1)[:, None, None, None], 255 - pixels, pixels)

    plain, changed = (digit_features(alone(), 9, {"corrupt": corrupt})[3] for corrupt in (None, inverted))
    np.testing.assert_array_equal(plain[::2], changed[::2])
    assert (plain[1::2] != changed[1::2]).any(axis=1).all()


def damaged_image(ranks: Ranks, row: int) -> None:
    def refuse(pixels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if row in rows:
            raise DataError(f"image {row} is damaged")
        return pixels

    extract(encoder(), digits(), np.arange(4 * BLOCK), VIEW, ranks=ranks, corrupt=refuse, **SETTINGS)


def test_an_image_that_one_rank_cannot_read_ends_it_on_every_rank(tmp_path):
    row = BLOCK + 3  # of the second block, which is rank 1's
    assert [str(error) for error in on_ranks(3, tmp_path, damaged_image, row)] == [f"image {row} is damaged"] * 3
