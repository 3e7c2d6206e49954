"""The pretraining spec, with the paper's values (arXiv 2210.02077) as defaults."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from trainer.spec.base import Document, SpecModel, refuse
from trainer.spec.cluster import ClusterShape
from trainer.spec.common import (
    MOST_EPOCHS,
    Auto,
    BatchSize,
    Epochs,
    Heads,
    Interval,
    Kept,
    Labels,
    Priority,
    RetrySpec,
    Seed,
)
from trainer.spec.dataset import MAX_CHANNELS, DatasetSpec
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.evaluation import EvaluationSpec
from trainer.spec.export import BackboneName, ExportSpec, misfit
from trainer.spec.presets import DEFAULT_PRESET, MODEL_FIELDS, PRESETS
from trainer.spec.resources import CPU_TOKENS, ResourcesSpec, divisor
from trainer.spec.subject import CheckpointRef

MOST_PARAMETERS: Final = 10**12
"""Most parameters of encoder and decoder together."""
MOST_PATCHES: Final = 2**18

Side = Annotated[int, Field(ge=1, le=2**14)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Blocks = Annotated[int, Field(ge=1, le=1024)]


class ModelSpec(SpecModel):
    """The network's sizes: a preset, and sizes that override it."""

    preset: str = Field(DEFAULT_PRESET, examples=list(PRESETS))
    """The preset that gives the sizes below unless they are set."""
    img_size: Side | tuple[Side, Side] = 224
    """Side of the square crop in pixels, or [height, width]."""
    patch_size: Side = 16
    """Side of a patch in pixels; divides both sides of the image."""
    in_chans: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3
    """Channels of the images. Grey, RGB and RGBA images are converted to 1, 3 or 4 channels; images with other numbers
    of bands need exactly that number."""
    embed_dim: Width = 768
    """Width of the encoder; divisible by 4 (position embeddings) and by `num_heads`."""
    depth: Blocks = 12
    """Blocks of the encoder."""
    num_heads: Heads = 12
    """Attention heads of the encoder."""
    decoder_embed_dim: Width = 512
    """Width of the decoder; divisible by 4 and by `decoder_num_heads`."""
    decoder_depth: Blocks = 8
    """Blocks of the decoder."""
    decoder_num_heads: Heads = 16
    """Attention heads of the decoder."""

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_preset(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        name = data.get("preset", DEFAULT_PRESET)
        if not isinstance(name, str) or name not in PRESETS:
            raise refuse("preset", f"unknown preset; there are {', '.join(PRESETS)}", name)
        preset = PRESETS[name]
        return {"preset": name} | {field: getattr(preset, field) for field in MODEL_FIELDS} | data

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.height % self.patch_size or self.width % self.patch_size:
            raise refuse("img_size", f"both sides must be divisible by patch_size {self.patch_size}", self.img_size)
        if self.patches < 4:
            raise refuse(
                "patch_size", f"leaves {self.patches} patches of an image; at least 4 are needed", self.patch_size
            )
        for width, heads in (("embed_dim", "num_heads"), ("decoder_embed_dim", "decoder_num_heads")):
            size, count = getattr(self, width), getattr(self, heads)
            if size % 4:
                raise refuse(
                    width, "must be divisible by 4: its position embedding holds sines and cosines of x and y", size
                )
            if size % count:
                raise refuse(heads, f"must divide {width} {size}", count)
        if self.patches > MOST_PATCHES:
            text = f"leaves {self.patches} patches of an image; at most {MOST_PATCHES} are possible"
            raise refuse("patch_size", text, self.patch_size)
        count = sum(self.parameters)
        if count > MOST_PARAMETERS:
            text = f"gives {count:.1e} parameters: lower it, or a depth, for {MOST_PARAMETERS:.0e} at most"
            raise refuse("embed_dim", text, self.embed_dim)
        return self

    @property
    def height(self) -> int:
        return self.img_size if isinstance(self.img_size, int) else self.img_size[0]

    @property
    def width(self) -> int:
        return self.img_size if isinstance(self.img_size, int) else self.img_size[1]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along height and width."""
        return self.height // self.patch_size, self.width // self.patch_size

    @property
    def patches(self) -> int:
        """Patches of one image (L)."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_values(self) -> int:
        """Values of one patch (p*p*C)."""
        return self.patch_size**2 * self.in_chans

    @property
    def parameters(self) -> tuple[int, int]:
        """Trainable parameters of encoder and decoder (position embeddings are fixed and not counted)."""

        def blocks(dim: int, depth: int) -> int:
            return depth * (12 * dim * dim + 13 * dim)

        encoder = self.patch_values * self.embed_dim + self.embed_dim + self.embed_dim  # patches, bias, class token
        encoder += blocks(self.embed_dim, self.depth) + 2 * self.embed_dim
        dim = self.decoder_embed_dim
        decoder = self.embed_dim * dim + dim + dim + blocks(dim, self.decoder_depth) + 2 * dim
        decoder += dim * self.patch_values + self.patch_values
        return encoder, decoder


class TeacherSpec(SpecModel):
    """The mean teacher: an exponential moving average of the student."""

    momentum: float = Field(0.996, ge=0, le=1)
    """Share of the old teacher kept at each optimiser step, at the start of training."""
    final_momentum: float = Field(1.0, ge=0, le=1)
    """Momentum at the end of training, reached along a half cosine."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` is the paper's text; `constant` is what its released code does in effect."""

    @model_validator(mode="before")
    @classmethod
    def _constant_ends_where_it_starts(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("schedule") == "constant" and "final_momentum" not in data:
            return data | {"final_momentum": data.get("momentum", 0.996)}
        return data

    @model_validator(mode="after")
    def _momentum_rises(self) -> Self:
        if self.schedule == "constant" and self.final_momentum != self.momentum:
            raise refuse(
                "final_momentum",
                f"a constant schedule stays at momentum {self.momentum}: remove final_momentum or use schedule cosine",
                self.final_momentum,
            )
        if self.final_momentum < self.momentum:
            raise refuse("final_momentum", f"must not be below momentum {self.momentum}", self.final_momentum)
        return self


class MethodSpec(SpecModel):
    """RC-MAE, or MAE: the same without the teacher."""

    name: Literal["rc_mae", "mae"] = "rc_mae"
    """`rc_mae` adds a mean teacher and the consistency loss to `mae`."""
    mask_ratio: float = Field(0.75, gt=0, lt=1)
    """Share of the patches hidden from the encoder."""
    norm_pix_loss: bool = True
    """Predict pixels normalised by each patch's own mean and deviation."""
    consistency_weight: float = Field(1.0, ge=0, le=1e6)
    """Weight of the consistency loss (gamma in the paper); 0 for `mae`."""
    teacher: TeacherSpec | None = Field(default_factory=TeacherSpec)
    """The mean teacher; null for `mae`."""

    @model_validator(mode="before")
    @classmethod
    def _mae_has_no_teacher(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("name") == "mae":
            return {"consistency_weight": 0.0, "teacher": None} | data
        return data

    @model_validator(mode="after")
    def _teacher_fits_name(self) -> Self:
        if self.name == "mae":
            if self.teacher is not None:
                raise refuse("teacher", "method mae has no teacher: remove it, or use name rc_mae")
            if self.consistency_weight:
                raise refuse("consistency_weight", "method mae has no consistency loss: remove it, or use name rc_mae")
        elif self.teacher is None:
            raise refuse("teacher", "method rc_mae needs a teacher: remove the null, or use name mae")
        return self


class OptimizationSpec(SpecModel):
    """AdamW with linear warm-up and half-cosine decay, set at every optimiser step."""

    epochs: Epochs = 1600
    """Passes over the training images."""
    global_batch_size: BatchSize = 4096
    """Images of one optimiser step, over all workers and accumulation steps."""
    base_lr: float = Field(1.5e-4, gt=0, le=1e6)
    """Learning rate for 256 images; the peak is `base_lr * global_batch_size / 256`."""
    weight_decay: float = Field(0.05, ge=0, le=1e6)
    """AdamW's decay; biases and one-dimensional parameters have none."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    warmup_epochs: float = Field(40.0, ge=0, le=MOST_EPOCHS)
    """Epochs of linear warm-up from 0; by default a fortieth of `epochs` (the paper's 40 of 1600)."""
    min_lr: float = Field(0.0, ge=0, le=1e6)
    """Learning rate at the end of training, not scaled by the batch."""
    clip_grad_norm: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """The gradient is scaled down to this norm; null: no clipping."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`bf16` is autocast over fp32 weights; `auto` is bf16 on GPUs that have it, fp32 elsewhere."""
    compile: bool | Auto = "auto"
    """Whether torch.compile compiles the step, which takes a minute or two at each start and makes the steps faster.
    `auto`: on a GPU, and on the CPU in runs of more than about an hour, if the nodes have a C++ compiler."""
    micro_batch_size: BatchSize | Auto = "auto"
    """Images that a worker processes at once; its share of the batch is processed in parts of this size.
    `auto`: on a GPU as many as fit into its memory, on the CPU as many as keep it busy."""

    @model_validator(mode="before")
    @classmethod
    def _warmup_follows_epochs(cls, data: Any) -> Any:
        epochs = data.get("epochs") if isinstance(data, dict) else None
        if isinstance(epochs, (int, float)) and 0 < epochs <= MOST_EPOCHS and "warmup_epochs" not in data:
            return data | {"warmup_epochs": epochs / 40}
        return data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.warmup_epochs > self.epochs:
            raise refuse("warmup_epochs", f"must not be above epochs {self.epochs}", self.warmup_epochs)
        if self.min_lr > self.peak_lr:
            raise refuse("min_lr", f"must not be above the peak learning rate {self.peak_lr:g}", self.min_lr)
        if self.micro_batch_size != "auto" and self.global_batch_size % self.micro_batch_size:
            raise refuse(
                "micro_batch_size", f"must divide global_batch_size {self.global_batch_size}", self.micro_batch_size
            )
        return self

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.global_batch_size / 256


Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(gt=0, le=1e6)]


class AugmentationSpec(SpecModel):
    """Random resized crop (ratio 3/4 to 4/3, bicubic), horizontal flip, normalisation."""

    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.2, 1.0)
    """Smallest and largest share of the image's area in a crop."""
    hflip: bool = True
    """Mirror every second image, left to right."""
    mean: Annotated[tuple[Mean, ...], Field(max_length=MAX_CHANNELS)] | Auto = "auto"
    """Mean of each channel in 0..1; `auto` is ImageNet's for three channels, else measured on the training images."""
    std: Annotated[tuple[Deviation, ...], Field(max_length=MAX_CHANNELS)] | Auto = "auto"
    """Deviation of each channel in 0..1; `auto` as for `mean`."""

    @model_validator(mode="after")
    def _scale_rises(self) -> Self:
        if self.crop_scale[0] > self.crop_scale[1]:
            raise refuse("crop_scale", "the first number must not be above the second", list(self.crop_scale))
        if (self.mean == "auto") != (self.std == "auto"):
            raise refuse("mean", "give both mean and std, or neither", self.mean)
        return self


class CheckpointSpec(SpecModel):
    """When checkpoints are stored, in addition to those at the end and at a pause."""

    every_epochs: Interval = 20
    """Epochs between two checkpoints."""
    every_minutes: Annotated[float, Field(gt=0, le=10_000_000)] | None = 30.0
    """Minutes after which another checkpoint is taken, even in the middle of an epoch; null: no limit."""
    keep: Kept = 3
    """The number of newest checkpoints to keep; the one with the best reconstruction is kept too."""


class PretrainSpec(Document):
    """One pretraining job. Every field but `kind` and `dataset.uri` has a default: the paper's ViT-Base run."""

    kind: Literal["pretrain"]
    """What the job does."""
    name: str = Field("", max_length=200)
    """A descriptive name; by default made of the dataset's and the preset's."""
    dataset: DatasetSpec
    model: ModelSpec = Field(default_factory=lambda: ModelSpec.model_validate({}))
    method: MethodSpec = Field(default_factory=MethodSpec)
    optimization: OptimizationSpec = Field(default_factory=OptimizationSpec)
    augmentation: AugmentationSpec = Field(default_factory=AugmentationSpec)
    resources: ResourcesSpec = Field(default_factory=ResourcesSpec)
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    retry: RetrySpec = Field(default_factory=RetrySpec)
    register_as: BackboneName | None = None
    """Name under which the pretrained backbone is registered; null registers none."""
    export: ExportSpec = Field(default_factory=ExportSpec)
    """Which network is registered, and in which formats."""
    labels: Labels = Field(default_factory=dict)
    """Your own names and values, by which you can find jobs."""
    priority: Priority = 0
    """Jobs of higher priority start first."""
    seed: Seed = 0
    """Seed of initial weights, order, crops, flips and masks."""

    @property
    def images_per_step(self) -> int:
        """The global batch."""
        return self.optimization.global_batch_size

    @property
    def dataset_used(self) -> DatasetSpec:
        """The dataset whose images are read."""
        return self.dataset

    @property
    def worker_resources(self) -> ResourcesSpec:
        """The resources of an attempt's workers."""
        return self.resources

    @property
    def concurrent_runs(self) -> int:
        """Training runs that take place at a time, each with workers of its own."""
        return 1

    def following(self, subject: str | CheckpointRef) -> EvaluateSpec | None:
        """The evaluation of ``subject``, what has been trained, that is to follow; None if none is."""
        after = self.evaluation.following
        dataset = self.evaluation.dataset or self.dataset
        return after.of(subject, dataset, self.labels, self.priority) if after else None

    def resolved_sections(self, cluster: ClusterShape) -> dict[str, Any]:
        """The sections in which `trainer.spec.plan.resolve` fills in `auto` values."""
        batch, micro_batch = self.optimization.global_batch_size, self.optimization.micro_batch_size
        settled = self.resources.settled(cluster, batch if micro_batch == "auto" else batch // micro_batch)
        workers, gpus = settled["workers"], settled["gpus_per_worker"]
        if micro_batch == "auto" and not gpus:
            micro_batch = divisor(batch // workers, max(1, CPU_TOKENS // (1 + self.model.patches)))
        return {
            "resources": settled,
            "optimization": self.optimization.model_dump(mode="json") | {"micro_batch_size": micro_batch},
        }

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        chans, visible = self.model.in_chans, int(self.model.patches * (1 - self.method.mask_ratio))
        if not 1 <= visible < self.model.patches:
            raise refuse(
                "method.mask_ratio",
                f"leaves {visible} of {self.model.patches} patches visible: keep at least one visible and one masked",
                self.method.mask_ratio,
            )
        if self.method.norm_pix_loss and self.model.patch_values < 2:
            raise refuse("method.norm_pix_loss", "a patch of one value has no deviation: set it to false", True)
        for name in ("mean", "std"):
            values = getattr(self.augmentation, name)
            if values != "auto" and len(values) != chans:
                raise refuse(f"augmentation.{name}", f"give one number for each of the {chans} channels", list(values))
        workers, batch = self.resources.workers, self.optimization.global_batch_size
        if workers != "auto" and batch % workers:
            raise refuse("resources.workers", f"must divide optimization.global_batch_size {batch}", workers)
        micro = self.optimization.micro_batch_size
        if workers != "auto" and micro != "auto" and (batch // workers) % micro:
            raise refuse(
                "optimization.micro_batch_size", f"must divide a worker's share of the batch, {batch // workers}", micro
            )
        problem = misfit(self.export, self.method.name, (self.model.height, self.model.width))
        if problem:
            raise refuse(*problem)
        return self

    @model_validator(mode="before")
    @classmethod
    def _export_follows(cls, data: Any) -> Any:
        """Fill in the defaults of `export`, which depend on the method and the image size."""
        export = data.get("export", {}) if isinstance(data, dict) else None
        if not isinstance(export, dict):
            return data
        method, model = data.get("method"), data.get("model")
        name = method.get("name") if isinstance(method, dict) else None
        size = model.get("img_size") if isinstance(model, dict) else None
        return data | {"export": ExportSpec.defaults(name, size) | export}

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("name"):
            return data
        dataset, model = data.get("dataset"), data.get("model")
        uri = dataset.get("uri") if isinstance(dataset, dict) else None
        preset = model.get("preset", DEFAULT_PRESET) if isinstance(model, dict) else DEFAULT_PRESET
        if isinstance(uri, str) and isinstance(preset, str):
            return data | {"name": f"{uri.rstrip('/').rpartition('/')[2]}-{preset}"[:200]}
        return data
