"""Folders of transformers that are refused, each with what is wrong and where."""

import json
import re

import pytest
import torch
from foreign import rewritten, stored, version_4, vit, vit_mae
from safetensors.torch import load_file, save_file

from trainer.errors import StorageError, WeightsRefused
from trainer.storage import Store
from trainer.weights.foreign import read_weights


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "dinov2"}, "config.json: model_type 'dinov2': only vit and vit_mae of transformers"),
        ({"model_type": None}, "config.json: model_type None"),
        ({"hidden_act": "gelu_new"}, "config.json: hidden_act 'gelu_new': only networks with gelu"),
        ({"qkv_bias": False}, "config.json: qkv_bias false"),
        ({"intermediate_size": 48}, "config.json: intermediate_size 48 is not 4 times hidden_size 24"),
        ({"decoder_intermediate_size": 60}, "decoder_intermediate_size 60 is not 4 times decoder_hidden_size 16"),
        ({"hidden_size": {}}, "embed_dim: must be a valid integer"),
        ({"layer_norm_eps": False}, "config.json: layer_norm_eps False must be a small number"),
        ({"layer_norm_eps": "small"}, "config.json: layer_norm_eps 'small' must be a small number"),
        ({"patch_size": [8, 4]}, "config.json: patch_size [8, 4]: only square patches"),
        ({"num_attention_heads": 5}, "num_heads: must divide embed_dim 24 (given: 5)"),
        ({"image_size": 30}, "img_size: both sides must be divisible by patch_size 8"),
        ({"num_hidden_layers": "many"}, "depth: must be a valid integer, unable to parse"),
        ({"image_size": 64}, "vit.embeddings.position_embeddings: has the shape (1, 17, 24), and (1, 65, 24)"),
        ({"patch_size": 4, "image_size": 16}, "projection.weight: has the shape (24, 3, 8, 8), and (24, 3, 4, 4)"),
        ({"num_hidden_layers": 3}, "model.safetensors: encoder.layer.2.attention.attention.key.bias"),
        ({"num_hidden_layers": 1}, "model.safetensors: vit.encoder.layer.1.attention.attention.key.bias"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_with_its_field(tmp_path, changes, told):
    stored(vit_mae(), tmp_path)
    with pytest.raises(WeightsRefused, match=re.escape(told)):
        read_weights(rewritten(tmp_path, **changes))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"image_mean": [0.5], "image_std": [0.2] * 3}, "the mean of each channel must be 3 numbers, not [0.5]"),
        ({"image_mean": [0.5] * 3, "image_std": [0.2, 0, 1]}, "the deviation of each channel must be above 0"),
        ({"image_mean": [0.5] * 3, "image_std": "all"}, "the deviation of each channel must be 3 numbers, not 'all'"),
        ({"image_mean": [0.5] * 3, "image_std": [1] * 3, "rescale_factor": 0}, "rescale_factor 0 must be a number"),
        ({"image_mean": [0.5] * 3, "image_std": [1] * 3, "rescale_factor": True}, "rescale_factor True must be a numb"),
        ({"image_mean": [True] * 3, "image_std": [1] * 3}, "the mean of each channel must be 3 numbers"),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "offset": True}, "offset True: values that are shifted"),
        ({"image_processor_type": "ViTImageProcessor"}, "has no image_mean and no image_std: add what the network"),
        ({"image_mean": [0.5] * 3}, "has no image_std: add what the network was trained with"),
        ({"image_mean": None, "image_std": [0.5] * 3}, "has no image_mean: add what the network was trained with"),
    ],
)
def test_a_processor_that_does_not_fit_is_refused(tmp_path, settings, told):
    store = stored(vit(), tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(WeightsRefused, match=re.escape(f"preprocessor_config.json: {told}")):
        read_weights(store)


def test_channels_without_normalisation_are_refused(tmp_path):
    with pytest.raises(WeightsRefused, match="does not say how its images of 1 channels are normalised"):
        read_weights(stored(vit(num_channels=1), tmp_path))


def test_heads_that_contradict_the_configuration_are_refused(tmp_path):
    store = stored(vit(), tmp_path)
    assert read_weights(store, num_heads=3).model.num_heads == 3
    with pytest.raises(WeightsRefused, match="num_heads 4: the source says 3"):
        read_weights(store, num_heads=4)
    with pytest.raises(WeightsRefused, match=r"decoder_num_heads 4: .* has no decoder"):
        read_weights(store, decoder_num_heads=4)


def test_folders_without_what_is_needed_are_refused(tmp_path):
    with pytest.raises(WeightsRefused, match="absent: the folder is empty or does not exist"):
        read_weights(Store(str(tmp_path)), "absent")
    with pytest.raises(StorageError, match=r"absent\.pth"):
        read_weights(Store(str(tmp_path)), "absent.pth")
    (tmp_path / "weights.pth").touch()
    with pytest.raises(WeightsRefused, match=r"there is no config\.json: name a folder"):
        read_weights(Store(str(tmp_path)))
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(WeightsRefused, match=r"there are no weights: it needs one of model\.safetensors"):
        read_weights(Store(str(tmp_path)))
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsRefused, match=r"config\.json: must hold a JSON object, not a list"):
        read_weights(Store(str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsRefused, match=r"config\.json: is no JSON"):
        read_weights(Store(str(tmp_path)))


def test_json_that_is_nested_without_end_is_refused(tmp_path):
    store = stored(vit(), tmp_path)
    (tmp_path / "config.json").write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(WeightsRefused, match=r"config\.json: is no JSON"):
        read_weights(store)


def test_a_file_of_another_ending_is_called_a_file(tmp_path):
    (tmp_path / "weights.npz").write_bytes(b"a")
    with pytest.raises(WeightsRefused, match=r"weights\.npz: is a file whose name does not end in \.safetensors"):
        read_weights(Store(str(tmp_path)), "weights.npz")


def test_a_folder_whose_name_ends_like_a_file_is_read_as_a_folder(tmp_path):
    stored(vit(), tmp_path / "vit.pth")
    assert read_weights(Store(str(tmp_path)), "vit.pth").source_format == "vit"


def test_parts_that_do_not_fit_their_index_are_refused(tmp_path):
    store = stored(vit(), tmp_path, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    first = load_file(parts[0])
    lost = sorted(first)[0]
    save_file({name: value for name, value in first.items() if name != lost}, parts[0])
    with pytest.raises(WeightsRefused, match=re.escape(f"{parts[0].name}: {lost} is missing, although")):
        read_weights(store)
    save_file(first | load_file(parts[1]), parts[0])
    with pytest.raises(WeightsRefused, match="is also in"):
        read_weights(store)
    parts[1].unlink()
    with pytest.raises(WeightsRefused, match=f"lists {parts[1].name}, which is not in the folder"):
        read_weights(store)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text("{}")
    with pytest.raises(WeightsRefused, match="has no weight_map"):
        read_weights(store)


def test_a_tensor_by_the_names_of_two_versions_is_refused(tmp_path):
    network = vit_mae()
    store = stored(network, tmp_path)
    save_file(version_4(network.state_dict()) | network.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsRefused, match="are the same tensor: keep one of the two"):
        read_weights(store)
