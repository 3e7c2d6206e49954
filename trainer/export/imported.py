"""Where a backbone that others have trained comes from: what its card, its tags and its files say of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from trainer.export.card import Facts
from trainer.export.huggingface import Masking
from trainer.export.markdown import plain, table
from trainer.export.metadata import Described
from trainer.protocol import names
from trainer.spec.cluster import plural
from trainer.spec.export import Network
from trainer.spec.formats import BACKBONE_HF_MAE
from trainer.spec.importing import ImportSpec
from trainer.spec.pretrain import ModelSpec

SOURCE_FORMATS: Final = {
    "timm": "a folder of timm",
    "vit": "a folder of transformers' ViT",
    "vit_mae": "a folder of transformers' ViTMAE",
    "mae_pth": "a file of weights by the names of MAE's code",
    "rc_mae_pth": "a file of weights by the names of RC-MAE's code",
}
"""In words."""
SINGLE_FILES: Final = ("mae_pth", "rc_mae_pth")
"""Formats that say nothing but tensors, so that the comparison rests on assumptions."""
MOST_LISTED: Final = 10
"""Files whose digests fit into a tag."""


@dataclass(frozen=True)
class Imported:
    """Weights from elsewhere, and what was found out when they were read."""

    spec: ImportSpec
    job_id: str
    """The job that has imported them."""
    source_format: str
    """One of `SOURCE_FORMATS`."""
    files: Mapping[str, str]
    """The sha256 of each file that was read, by its name in the source."""
    model: ModelSpec
    masking: Masking | None
    """How the decoder was trained; None if the source has none."""
    network: Network | None
    """Which of the source's networks it is; None if it has only one."""
    formats: tuple[str, ...]
    """Those that are registered."""
    deviation: float
    """The greatest difference of our tokens, and predicted pixels where there is a decoder, from those of the
    original's arithmetic, in units of their size."""
    fitting: str = ""
    """A sentence on how its makers' own code fits pictures to the network's size; empty if it is done so here."""
    notes: tuple[str, ...] = ()
    """Sentences on what was left out, assumed or adapted."""

    imported = True
    method = names.METHOD_IMPORTED

    @property
    def described(self) -> Described:
        masked = ("masked-autoencoder",) if self.masking else ()
        return Described((*masked, self.method), base_model=self.spec.origin.hub_id)

    @property
    def document(self) -> Mapping[str, Any]:
        """The import's spec, with what the source turned out to be, by the names of a pretraining spec's fields."""
        spec = self.spec
        method: dict[str, Any] = {"name": self.method}
        if self.masking:
            method |= {"mask_ratio": self.masking.mask_ratio, "norm_pix_loss": self.masking.norm_pix_loss}
        return spec.model_dump(mode="json") | {
            "export": {
                "network": self.network, "formats": list(self.formats), "license": spec.license,
                "license_link": spec.license_link,
            },
            "model": self.model.model_dump(mode="json"),
            "method": method,
            "source_format": self.source_format,
            "source_sha256": dict(self.files),
        }  # fmt: skip

    @property
    def spec_sha256(self) -> str:
        return self.spec.sha256()

    @property
    def _origin(self) -> str:
        """The origin's name, as a link where there is one."""
        origin = self.spec.origin
        return f"[{plain(origin.name)}]({origin.url})" if origin.url else plain(origin.name)

    @property
    def _source(self) -> str:
        """What the source's folder or file is called; never where it lies."""
        return plain(self.spec.source.uri.rpartition("/")[2])

    # --- the card ---------------------------------------------------------------------------------------------------

    def how(self) -> str:
        return f"imported from {self._origin}: its makers have trained it, elsewhere"

    def weights(self, network: Network | None) -> str:
        whose = f"the {network}'s of {self._origin}" if network else f"those of {self._origin}"
        form = SOURCE_FORMATS.get(self.source_format, self.source_format)
        assumed = given = ""
        if self.source_format in SINGLE_FILES:
            assumed = ", which does not say its activation and epsilon: GELU and 1e-6, as in MAE's code, were assumed"
            given = ", by these assumptions"
        return (
            f"The weights are {whose}, converted from {form}{assumed}. On the same images, {self._compared} "
            f"differ from the original's by at most {self.deviation:.1g} of their size{given}."
        )

    @property
    def _compared(self) -> str:
        return "tokens and predicted pixels" if self.masking else "tokens"

    def training(self, facts: Facts) -> str:
        origin, model = self.spec.origin, facts.model
        rows = {
            "data": f"{plain(origin.trained_on)}, as its makers say" if origin.trained_on else "its makers know",
            "method": "its makers know; this service has not trained it",
        }
        if origin.paper:
            rows["paper"] = f"<{origin.paper}>"
        if self.masking:
            held = "only `hf-mae` has it" if BACKBONE_HF_MAE in facts.formats else "no format here has it"
            rows["decoder"] = (
                f"width {model.decoder_embed_dim}, {plural(model.decoder_depth, 'block')}, "
                f"{plural(model.decoder_num_heads, 'head')}; {held}"
            )
        notes = "".join(f"- {plain(note)}\n" for note in self.notes)
        return table(rows) + (f"\nFrom reading the weights:\n\n{notes}" if notes else "")

    def experience(self) -> str:
        learned = self.spec.origin.trained_on
        what = (
            f"It has learned from {plain(learned)}, as its makers say" if learned else "Only its makers know the data"
        )
        return f"{what}: whatever that lacks or shows too often, it has learned too."

    def whom_to_ask(self) -> str:
        return f"the makers of {self._origin}"

    def not_evaluated(self) -> str:
        return "It has not been evaluated here. Its makers may have published results."

    def citation(self) -> str:
        origin = self.spec.origin
        if origin.citation:
            return f"```bibtex\n{origin.citation.strip()}\n```\n"
        paper = f" Its paper is <{origin.paper}>." if origin.paper else ""
        return f"Cite it as its makers ask you to: {self._origin}.{paper}\n"

    def lineage(self, network: Network | None) -> dict[str, str]:
        which = f", the {network}" if network else ""
        form = SOURCE_FORMATS.get(self.source_format, self.source_format)
        return {
            "origin": self._origin,
            "imported by": f"`{self.job_id}`",
            "source": f"{self._source}{which}, {form}",
            **{f"sha256 of {plain(name)}": f"`{digest}`" for name, digest in self.files.items()},
            "greatest deviation": f"{self.deviation:.2g} of the size of {self._compared}, from the original's own "
            f"arithmetic{', by the assumptions above' if self.source_format in SINGLE_FILES else ''}",
            "spec sha256": f"`{self.spec_sha256}`",
        }

    def pictures(self) -> dict[str, bytes]:
        return {}

    # --- files and tags ---------------------------------------------------------------------------------------------

    def tags(self) -> dict[str, str]:
        origin = self.spec.origin
        return {
            names.TAG_SOURCE_JOB: self.job_id,
            names.TAG_ORIGIN: origin.name,
            **({names.TAG_ORIGIN_URL: origin.url} if origin.url else {}),
            names.TAG_SOURCE_FORMAT: self.source_format,
            names.TAG_SOURCE_FILES: self._digests,
        }

    @property
    def _digests(self) -> str:
        """The sha256 of each file; of many, of their list as `sha256sum` writes it, in the order of their names."""
        if len(self.files) <= MOST_LISTED:
            return json.dumps(self.files)
        listed = "".join(f"{digest}  {name}\n" for name, digest in sorted(self.files.items()))
        return f"sha256:{hashlib.sha256(listed.encode()).hexdigest()}"

    def record(self) -> dict[str, Any]:
        return {
            "job_id": self.job_id,
            "origin": self.spec.origin.name,
            "origin_url": self.spec.origin.url,
            "source_format": self.source_format,
            "source_sha256": dict(self.files),
        }

    def history(self) -> dict[str, Any]:
        return {"step": None, "epochs": None, "curves": {}}
