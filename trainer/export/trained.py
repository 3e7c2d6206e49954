"""Where a backbone that was trained here comes from: what its card, its tags and its files say of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from trainer.export.card import CURVES, RECONSTRUCTIONS, Evaluation, Facts
from trainer.export.curves import draw_curves
from trainer.export.markdown import plain, table
from trainer.export.metadata import Described
from trainer.protocol import names
from trainer.spec import metric_keys
from trainer.spec.cluster import plural
from trainer.spec.export import Network
from trainer.spec.formats import BACKBONE_HF_MAE
from trainer.spec.pretrain import PretrainSpec

CURVE_POINTS = 200
"""Points of a curve in `metrics.json`, at most."""
PAPERS: Final = {
    "rc_mae": """@inproceedings{lee2023rcmae,
  title = {Exploring The Role of Mean Teachers in Self-supervised Masked Auto-Encoders},
  author = {Lee, Youngwan and Willette, Jeffrey Ryan and Kim, Jonghee and Lee, Juho and Hwang, Sung Ju},
  booktitle = {International Conference on Learning Representations},
  year = {2023}
}""",
    "mae": """@inproceedings{he2022mae,
  title = {Masked Autoencoders Are Scalable Vision Learners},
  author = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2022}
}""",
}
"""By method."""


@dataclass(frozen=True)
class Trained:
    """The training of a backbone, up to the checkpoint that is registered."""

    spec: PretrainSpec
    """The resolved spec that it was trained with."""
    job_id: str
    """The pretraining job."""
    registered_by: str
    """The job that registered it."""
    run_id: str
    attempt: int
    checkpoint: str
    """Relative to the run's artifact folder."""
    dataset_fingerprint: str
    dataset_images: int | None
    step: int
    epochs: float
    """Epochs of training that the weights have had."""
    curves: Mapping[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Epoch and value."""
    reconstructions: bytes | None = None
    """A PNG."""

    imported = False
    fitting = ""

    @property
    def method(self) -> str:
        return self.spec.method.name

    @property
    def described(self) -> Described:
        return Described(("masked-autoencoder", "self-supervised", self.method), dataset=self.spec.dataset.title)

    @property
    def document(self) -> Mapping[str, Any]:
        return self.spec.model_dump(mode="json")

    @property
    def spec_sha256(self) -> str:
        return self.spec.sha256()

    @property
    def dataset(self) -> str:
        """The dataset as text; never its URI."""
        return plain(self.spec.dataset.title) if self.spec.dataset.title else "a dataset that the spec does not name"

    def evaluation(self, values: Mapping[str, float], step: int | None) -> Evaluation:
        """What evaluations in training have measured."""
        networks: dict[str, Network] = {
            key: "teacher" if self.spec.method.teacher and key != metric_keys.RECONSTRUCTION_RATIO else "student"
            for key in values
        }
        return Evaluation(values, step, (self.spec.evaluation.dataset or self.spec.dataset).title, networks)

    # --- the card ---------------------------------------------------------------------------------------------------

    def how(self) -> str:
        method = "RC-MAE (a masked auto-encoder with a mean teacher)" if self.method == "rc_mae" else "MAE"
        return f"pretrained without labels with {method} on {self.dataset}"

    def weights(self, network: Network | None) -> str:
        return f"The weights are the {network}'s after {self.epochs:g} of {self.spec.optimization.epochs} epochs."

    def training(self, facts: Facts) -> str:
        spec, model = self.spec, facts.model
        images = "" if self.dataset_images is None else f", {self.dataset_images:,} images"
        mirrored = ", half of them mirrored" if spec.augmentation.hflip else ""
        decoder = "only `hf-mae` has it" if BACKBONE_HF_MAE in facts.formats else "no format here has it"
        least, greatest = (f"{share:.0%}" for share in spec.augmentation.crop_scale)
        return table({
            "data": f"{self.dataset}{images}; training used no labels",
            "crops": f"at random, of {least} to {greatest} of an image's area{mirrored}",
            "method": f"{spec.method.name}, mask ratio {spec.method.mask_ratio:g}, "
            f"{'normalised' if spec.method.norm_pix_loss else 'plain'} pixels",
            "decoder": f"width {model.decoder_embed_dim}, {plural(model.decoder_depth, 'block')}, "
            f"{plural(model.decoder_num_heads, 'head')}; {decoder}",
            "optimisation": f"{self.step:,} steps of {spec.optimization.global_batch_size} images, AdamW, peak "
            f"learning rate {spec.optimization.peak_lr:.4g}, weight decay {spec.optimization.weight_decay:g}",
        })  # fmt: skip

    def experience(self) -> str:
        return f"It has learned from {self.dataset} alone, with whatever that lacks or shows too often."

    def whom_to_ask(self) -> str:
        return "the people who trained it"

    def not_evaluated(self) -> str:
        return "It has not been evaluated."

    def citation(self) -> str:
        return f"```bibtex\n{PAPERS[self.method]}\n```\n"

    def lineage(self, network: Network | None) -> dict[str, str]:
        return {
            "job": f"`{self.job_id}`, attempt {self.attempt}",
            "registered by": f"`{self.registered_by}`",
            "MLflow run": f"`{self.run_id}`",
            "checkpoint": f"`{self.checkpoint}`, the {network}",
            "spec sha256": f"`{self.spec_sha256}`",
            "dataset fingerprint": f"`{self.dataset_fingerprint}`",
        }

    def pictures(self) -> dict[str, bytes]:
        found = {CURVES: draw_curves(self.curves), RECONSTRUCTIONS: self.reconstructions}
        return {name: data for name, data in found.items() if data is not None}

    # --- files and tags ---------------------------------------------------------------------------------------------

    def tags(self) -> dict[str, str]:
        return {
            names.TAG_DATASET: self.dataset_fingerprint,
            **({names.TAG_DATASET_NAME: self.spec.dataset.title} if self.spec.dataset.title else {}),
            names.TAG_EPOCHS: f"{self.epochs:g}",
            names.TAG_SOURCE_JOB: self.job_id,
            names.TAG_CHECKPOINT: self.checkpoint,
            names.TAG_STEP: str(self.step),
        }

    def record(self) -> dict[str, Any]:
        return {
            "job_id": self.job_id,
            "run_id": self.run_id,
            "checkpoint": self.checkpoint,
            "epochs": self.epochs,
            "dataset_fingerprint": self.dataset_fingerprint,
        }

    def history(self) -> dict[str, Any]:
        """For each curve over epochs its first, last and extreme points, and a sample of points."""

        def summary(points: list[tuple[float, float]]) -> dict[str, Any]:
            every = -(-len(points) // CURVE_POINTS)
            sampled = points[::-1][::every][::-1]  # counted from the end, so that the last point is among them
            return {
                "first": points[0],
                "last": points[-1],
                "least": min(points, key=lambda point: point[1]),
                "greatest": max(points, key=lambda point: point[1]),
                "points": sampled,
            }

        return {
            "step": self.step,
            "epochs": self.epochs,
            "curves": {key: summary(points) for key, points in self.curves.items()},
        }
