"""How labelled images train an encoder further, or a head on a frozen one: the settings of each protocol.

Values that depend on the network or on the data are `auto` here; `resolved` fills them in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Final, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from trainer.spec.base import Problem, SpecError, SpecModel, problems, refuse
from trainer.spec.common import MOST_EPOCHS, Auto, BatchSize, Epochs, Heads, Interval
from trainer.spec.resources import CPU_TOKENS

if TYPE_CHECKING:  # its module names evaluations, whose protocols are defined here
    from trainer.spec.pretrain import ModelSpec

Share = Annotated[float, Field(ge=0, le=1)]
Area = Annotated[float, Field(gt=0, le=1)]
MixingAlpha = Annotated[float, Field(ge=0, le=100)]

SMALL_WIDTH, BASE_WIDTH = 384, 768
"""Widths of ViT-Small and ViT-Base, up to which an encoder takes their values of the paper's recipes."""


class SupervisedSettings(SpecModel):
    """What every supervised training of an encoder or a head has."""

    longest_warmup: ClassVar[float] = 5.0
    """Epochs of warm-up unless `warmup_epochs` is set, in trainings that are long enough."""

    epochs: Epochs | Auto
    """Passes over the training images."""
    batch_size: BatchSize
    """Images of one optimiser step, over all workers. With fewer training images, all of them are one batch, and the
    log and the result say so."""
    base_lr: float = Field(gt=0, le=1e6)
    """Learning rate for 256 images; the peak is `base_lr * batch_size / 256`."""
    min_lr: float = Field(0.0, ge=0, le=1e6)
    """Learning rate at the end of the half cosine, not scaled by the batch."""
    warmup_epochs: Annotated[float, Field(ge=0, le=MOST_EPOCHS)] | Auto = "auto"
    """Epochs of linear warm-up from 0. `auto`: 5 (solver `paper`: 10), or a fifth of `epochs` if that is less."""
    weight_decay: float = Field(ge=0, le=1e6)
    """The optimiser's decay; biases and one-dimensional parameters have none."""
    clip_grad_norm: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """The gradient is scaled down to this norm; null: no clipping."""
    crop_scale: tuple[Area, Area] = (0.08, 1.0)
    """Smallest and largest share of the image's area in a random crop, whose ratio of sides is 3/4 to 4/3."""
    hflip: bool = True
    """Mirror every second image, left to right. Turn it off where left and right differ in meaning, as in digits."""
    every_epochs: Interval = 10
    """Epochs between two measurements on the test images, for the curve. Nothing is chosen by them."""
    micro_batch_size: BatchSize | Auto = "auto"
    """Most images that a worker processes at once; its share of the batch is processed in parts of this size.
    `auto`: on a GPU as many as fit into its memory, on the CPU as many as keep it busy."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` is autocast over fp32 weights; `auto` is bf16 on GPUs that have it, fp32 elsewhere."""

    @model_validator(mode="after")
    def _common_values_fit(self) -> Self:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise refuse("crop_scale", "the first number must not be above the second", list(self.crop_scale))
        if self.epochs != "auto" and self.warmup_epochs != "auto" and self.warmup_epochs > self.epochs:
            raise refuse("warmup_epochs", f"must not be above epochs {self.epochs}", self.warmup_epochs)
        if self.min_lr > self.peak_lr:
            raise refuse("min_lr", f"must not be above the peak learning rate {self.peak_lr:g}", self.min_lr)
        return self

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.batch_size / 256

    def uses_bf16(self, gpu: bool) -> bool:
        """Whether steps use bf16 on a GPU, or on the CPU; of `auto` what most GPUs have."""
        return self.precision == "bf16" or (gpu and self.precision == "auto")

    def resolved(self, model: ModelSpec, images: int) -> Self:
        """The settings for an encoder and a number of training images: only `micro_batch_size` and `precision` may
        still be `auto`. Resolving twice changes nothing.

        Raises `SpecError`: an `auto` may be what another value has to fit.
        """
        values = self.model_dump()
        chosen = {name: value for name, value in self._by_network(model).items() if values[name] == "auto"}
        epochs = chosen.get("epochs", values["epochs"])
        if values["warmup_epochs"] == "auto":
            chosen["warmup_epochs"] = min(self.longest_warmup, epochs / 5)
        batch = min(self.batch_size, max(images, 1))
        chosen["batch_size"] = batch - batch % 2 if batch < self.batch_size and batch > 1 else batch
        try:
            return type(self).model_validate(values | chosen)
        except ValidationError as error:
            raise SpecError(problems(error.errors(include_url=False), type(self))) from error

    def _by_network(self, model: ModelSpec) -> dict[str, Any]:
        """The values that `auto` has for this encoder, by field."""
        raise NotImplementedError


class RandAugmentSettings(SpecModel):
    """RandAugment (arXiv 1909.13719): each image undergoes some random operations on its colours or its geometry.

    The operations, each applied to every second image that draws it: contrast to the full range, equalisation,
    inversion, rotation, posterisation, solarisation, addition and solarisation, saturation, contrast, brightness,
    sharpness, shear and translation along both axes. A higher magnitude makes each stronger. Images that do not have
    three channels draw no saturation.
    """

    operations: Annotated[int, Field(ge=1, le=16)] = 2
    """Operations that an image draws, with replacement."""
    magnitude: float = Field(9.0, ge=0, le=10)
    """Mean strength of the operations."""
    magnitude_std: float = Field(0.5, ge=0, le=10)
    """Deviation of the strength, which is drawn for each image and operation and kept within 0 and 10."""


Recipe = Literal["paper", "small"]

RECIPES: Final[dict[Recipe, dict[str, Any]]] = {
    "paper": {},
    "small": {
        "epochs": 100,
        "batch_size": 128,
        "layer_decay": 0.75,
        "drop_path": 0.1,
        "crop_scale": (0.35, 1.0),
        "randaugment": None,
        "mixup": 0.0,
        "cutmix": 0.0,
        "erasing": 0.0,
    },
}
"""Values of each recipe where they differ from the defaults of `FinetuneSettings`."""


class PaperValues(NamedTuple):
    """What the paper's recipe changes with the encoder's size."""

    epochs: int
    layer_decay: float
    drop_path: float


PAPER_SMALL: Final = PaperValues(epochs=300, layer_decay=0.75, drop_path=0.1)
PAPER_BASE: Final = PaperValues(epochs=100, layer_decay=0.65, drop_path=0.1)
PAPER_LARGE: Final = PaperValues(epochs=100, layer_decay=0.65, drop_path=0.2)


class FinetuneSettings(SupervisedSettings):
    """The whole encoder trains, with a linear head on its pooled tokens.

    The paper's recipe (arXiv 2210.02077, which takes it from 2111.06377) is for ImageNet. With few images its strong
    augmentation and its large batch leave few and noisy steps. Pretrained ViTs are fine-tuned on small data with crops
    and flips alone (arXiv 2010.11929, 2106.10270); recipe `small` follows that, and keeps AdamW and layer decay.
    """

    recipe: Recipe = "paper"
    """`paper`: the paper's values, by the encoder's size. `small`, for about 1,000 to 50,000 images: 100 epochs in
    batches of 128, layer decay .75, drop path .1, crops of at least .35 of the area, flips, label smoothing .1; no
    RandAugment, mixup, cutmix or erasing. Every value can be overridden."""
    epochs: Epochs | Auto = "auto"
    """Passes over the training images. `auto` in recipe `paper`: 300 up to ViT-Small, else 100."""
    batch_size: BatchSize = 1024
    """Images of one optimiser step, over all workers. With fewer training images, all of them are one batch, and the
    log and the result say so."""
    base_lr: float = Field(5e-4, gt=0, le=1e6)
    """Learning rate for 256 images of the head; the peak is `base_lr * batch_size / 256`."""
    min_lr: float = Field(1e-6, ge=0, le=1e6)
    """Learning rate at the end of the half cosine, not scaled by the batch."""
    weight_decay: float = Field(0.05, ge=0, le=1e6)
    """AdamW's decay; biases, one-dimensional parameters, class token and position embeddings have none."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | Auto = "auto"
    """The learning rate of block l of d is `layer_decay^(d + 1 - l)` times that of the head; patch embedding, class
    token and position embeddings are layer 0. `auto` in recipe `paper`: .75 up to ViT-Small, else .65."""
    drop_path: Annotated[float, Field(ge=0, lt=1)] | Auto = "auto"
    """Probability with which the last block's branches are dropped for an image (stochastic depth, arXiv 1603.09382);
    earlier blocks have proportionally less. `auto` in recipe `paper`: .1 up to ViT-Base, else .2."""
    pooling: Literal["mean", "cls"] = "mean"
    """What the head sees: the mean of the patch tokens before the encoder's final norm, under a LayerNorm of its own,
    or the class token after the final norm."""
    randaugment: RandAugmentSettings | None = Field(default_factory=RandAugmentSettings)
    """Random operations on colours and geometry; null: none."""
    mixup: MixingAlpha = 0.8
    """Parameter alpha of the Beta distribution from which the share of an image in its mixture with another is drawn
    (arXiv 1710.09412); 0: no mixup. With mixup and cutmix, each pair of images draws one of the two."""
    cutmix: MixingAlpha = 1.0
    """As `mixup`, for pasting a box of another image (arXiv 1905.04899); 0: no cutmix."""
    erasing: Share = 0.25
    """Probability with which a random box of an image, of 2 to 33 % of its area, becomes noise (arXiv 1708.04896)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that is spread evenly over all classes."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay at each step of an exponential moving average of the weights, which is then what is tested; null: none."""

    @model_validator(mode="before")
    @classmethod
    def _values_of_recipe(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        recipe = data.get("recipe", "paper")
        return (RECIPES[recipe] | data) if isinstance(recipe, str) and recipe in RECIPES else data

    @model_validator(mode="after")
    def _pairs_can_mix(self) -> Self:
        if (self.mixup or self.cutmix) and self.batch_size % 2 and self.batch_size > 1:
            raise refuse("batch_size", "must be even, as mixup and cutmix mix pairs of images", self.batch_size)
        return self

    def _by_network(self, model: ModelSpec) -> dict[str, Any]:
        if model.embed_dim <= SMALL_WIDTH:
            return PAPER_SMALL._asdict()
        return (PAPER_BASE if model.embed_dim <= BASE_WIDTH else PAPER_LARGE)._asdict()


class PaperLinearSettings(SupervisedSettings):
    """The paper's linear classifier on a frozen encoder: LARS on crops that change with each epoch.

    The features are standardised over each global batch (BatchNorm without scale and shift, epsilon 1e-6), so that
    the result does not depend on how many workers or parts a batch is divided among.
    """

    longest_warmup: ClassVar[float] = 10.0

    epochs: Epochs | Auto = "auto"
    """Passes over the training images. `auto`: 90 up to ViT-Base, else 50."""
    batch_size: BatchSize = 16384
    """Images of one optimiser step, over all workers. With fewer training images, all of them are one batch, and the
    log and the result say so."""
    base_lr: float = Field(0.1, gt=0, le=1e6)
    """Learning rate for 256 images; the peak is `base_lr * batch_size / 256`."""
    weight_decay: float = Field(0.0, ge=0, le=1e6)
    """LARS's decay; one-dimensional parameters have none."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """LARS's momentum."""
    trust: float = Field(1e-3, gt=0, le=1e3)
    """LARS's trust coefficient (arXiv 1708.03888); one-dimensional parameters take the learning rate as it is."""
    pooling: Literal["cls", "mean", "attention"] = "cls"
    """The features: the class token, the mean of the patch tokens, or the patch tokens weighted by the class token's
    attention in the last block."""

    def _by_network(self, model: ModelSpec) -> dict[str, Any]:
        return {"epochs": 90 if model.embed_dim <= BASE_WIDTH else 50}


class AttentiveSettings(SupervisedSettings):
    """A learned query attends over the patch tokens of a frozen encoder, and a linear layer classifies the result.

    Attention finds what masked auto-encoders spread over their patch tokens (arXiv 2412.03215).
    """

    epochs: Epochs | Auto = 90
    """Passes over the training images."""
    batch_size: BatchSize = 256
    """Images of one optimiser step, over all workers. With fewer training images, all of them are one batch, and the
    log and the result say so."""
    base_lr: float = Field(1e-3, gt=0, le=1e6)
    """Learning rate for 256 images; the peak is `base_lr * batch_size / 256`."""
    weight_decay: float = Field(0.1, ge=0, le=1e6)
    """AdamW's decay; biases, one-dimensional parameters and the query have none."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""
    heads: Heads | Auto = "auto"
    """Heads of the query's attention; they divide the encoder's width. `auto`: as many as the encoder has."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread evenly over all classes."""

    def _by_network(self, model: ModelSpec) -> dict[str, Any]:
        if self.heads != "auto" and model.embed_dim % self.heads:
            text = f"must divide the encoder's width {model.embed_dim}"
            raise SpecError([Problem("heads", "/heads", self.heads, text)])
        return {"heads": model.num_heads}


def cpu_micro_batch(model: ModelSpec) -> int:
    """Images at once that keep a CPU busy: `micro_batch_size: auto` there."""
    return max(2, CPU_TOKENS // (1 + model.patches))


def supervised_memory(settings: SupervisedSettings, model: ModelSpec, images: int, bf16: bool) -> int:
    """Estimated bytes of a training's state and of the activations of so many images at once.

    State: fp32 weights, gradients and two moments. A frozen network keeps no activations for a backward pass.
    """
    values = (1 + model.patches) * model.embed_dim * (48 if bf16 else 76)
    blocks = model.depth if isinstance(settings, FinetuneSettings) else 2
    return 16 * model.parameters[0] + images * values * blocks
