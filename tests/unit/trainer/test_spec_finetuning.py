"""The settings of supervised training: recipes, what `auto` becomes, and errors that say what to do."""

import pytest
from pydantic import ValidationError

from trainer.spec.base import SpecError
from trainer.spec.finetuning import AttentiveSettings, FinetuneSettings, PaperLinearSettings, RandAugmentSettings
from trainer.spec.pretrain import ModelSpec


def model(preset: str) -> ModelSpec:
    return ModelSpec.model_validate({"preset": preset})


@pytest.mark.parametrize(
    ("preset", "epochs", "layer_decay", "drop_path"),
    [
        ("vit_small_patch16_224", 300, 0.75, 0.1),
        ("vit_base_patch16_224", 100, 0.65, 0.1),
        ("vit_large_patch16_224", 100, 0.65, 0.2),
    ],
)
def test_the_papers_recipe_is_the_default(preset, epochs, layer_decay, drop_path):
    settings = FinetuneSettings().resolved(model(preset), 1_281_167)
    assert settings.model_dump() == {
        "recipe": "paper", "epochs": epochs, "layer_decay": layer_decay, "drop_path": drop_path, "batch_size": 1024,
        "base_lr": 5e-4, "min_lr": 1e-6, "warmup_epochs": 5, "weight_decay": 0.05, "betas": (0.9, 0.999),
        "randaugment": {"operations": 2, "magnitude": 9, "magnitude_std": 0.5}, "mixup": 0.8, "cutmix": 1.0,
        "erasing": 0.25, "label_smoothing": 0.1, "pooling": "mean", "ema": None, "crop_scale": (0.08, 1.0),
        "hflip": True, "clip_grad_norm": None, "every_epochs": 10, "micro_batch_size": "auto", "precision": "auto",
    }  # fmt: skip
    assert settings.resolved(model(preset), 1_281_167) == settings
    assert settings.peak_lr == pytest.approx(2e-3)


@pytest.mark.parametrize(("preset", "epochs"), [("vit_base_patch16_224", 90), ("vit_large_patch16_224", 50)])
def test_the_papers_linear_classifier(preset, epochs):
    settings = PaperLinearSettings().resolved(model(preset), 1_281_167)
    assert (settings.epochs, settings.warmup_epochs, settings.batch_size) == (epochs, 10, 16384)
    assert settings.peak_lr == pytest.approx(6.4)


def test_the_small_recipe_is_gentler_and_can_be_overridden():
    settings = FinetuneSettings.model_validate({"recipe": "small", "mixup": 0.2, "randaugment": {"magnitude": 5}})
    assert (settings.mixup, settings.cutmix, settings.erasing) == (0.2, 0, 0)
    assert settings.randaugment == RandAugmentSettings(magnitude=5)
    assert FinetuneSettings(recipe="small").randaugment is None
    assert settings.resolved(model("vit_base_patch16_224"), 1000).layer_decay == 0.75


@pytest.mark.parametrize(("images", "batch"), [(16383, 16382), (61, 60), (2, 2), (1, 1), (20_000, 16384)])
def test_a_batch_is_cut_to_the_data_and_stays_even(images, batch):
    assert PaperLinearSettings().resolved(model("vit_base_patch16_224"), images).batch_size == batch


def test_a_short_training_warms_up_for_a_fifth_of_it():
    assert AttentiveSettings(epochs=4).resolved(model("vit_base_patch16_224"), 1000).warmup_epochs == 0.8


@pytest.mark.parametrize(
    ("settings", "data", "field", "message"),
    [
        (FinetuneSettings, {"recipe": "mine"}, "recipe", "'paper' or 'small'"),
        (FinetuneSettings, {"batch_size": 33}, "batch_size", "must be even"),
        (FinetuneSettings, {"epochs": 4, "warmup_epochs": 5}, "warmup_epochs", "must not be above epochs 4"),
        (FinetuneSettings, {"min_lr": 1.0}, "min_lr", "must not be above the peak learning rate 0.002"),
        (FinetuneSettings, {"crop_scale": [0.5, 0.2]}, "crop_scale", "must not be above the second"),
        (FinetuneSettings, {"erasing": 1.5}, "erasing", "less than or equal to 1"),
        (FinetuneSettings, {"randaugment": {"magnitude": 11}}, "magnitude", "less than or equal to 10"),
        (FinetuneSettings, {"warmup_epochs": -1}, "warmup_epochs", "greater than or equal to 0"),
        (PaperLinearSettings, {"momentum": 1}, "momentum", "less than 1"),
        (AttentiveSettings, {"mixup": 0.8}, "mixup", "Extra inputs"),
    ],
)
def test_values_that_do_not_fit_are_refused(settings, data, field, message):
    with pytest.raises(ValidationError) as caught:
        settings.model_validate(data)
    error = caught.value.errors()[0]  # a union reports one for each of its types
    assert message in error["msg"]
    assert field in {*error["loc"], error.get("ctx", {}).get("field")}


def test_values_that_do_not_fit_the_network_are_refused_with_the_field():
    with pytest.raises(SpecError, match=r"heads: must divide the encoder's width 768 \(given: 7\)"):
        AttentiveSettings(heads=7).resolved(model("vit_base_patch16_224"), 100)
    with pytest.raises(SpecError, match=r"warmup_epochs: must not be above epochs 100 \(given: 150"):
        FinetuneSettings(warmup_epochs=150).resolved(model("vit_base_patch16_224"), 100)
