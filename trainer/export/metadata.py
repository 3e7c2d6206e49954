"""The YAML at the top of a model card, which hubs and their clients read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import yaml

from trainer.spec import metric_keys
from trainer.spec.evaluation import PROBE_OF
from trainer.spec.formats import CLASSIFIER_TAG, LIBRARIES, PIPELINE_TAG

HUB_LICENSES: Final = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0
    cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gemma gfdl gpl gpl-2.0
    gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail
    openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
    """.split()  # noqa: SIM905 - a table that is easier to read like this
)
"""Identifiers that the Hugging Face Hub's documentation of licences lists."""
FINETUNE_TOP1: Final = metric_keys.score_key("finetune")
RESULTS: Final = {
    metric_keys.LINEAR_TOP1: ("image-classification", "Linear classification of frozen features", "accuracy"),
    metric_keys.KNN_TOP1: ("image-classification", "k-NN classification of frozen features", "accuracy"),
    FINETUNE_TOP1: (CLASSIFIER_TAG, "Classification, fine-tuned", "accuracy"),
    metric_keys.RECONSTRUCTION_RATIO: (PIPELINE_TAG, "Reconstruction of masked patches", "reconstruction_ratio"),
}
"""The task's type and name, and the metric's type, of results that a card reports. Those for comparison are not its."""


class Described(NamedTuple):
    """What the metadata of a card says about where a backbone comes from."""

    tags: tuple[str, ...]
    """Besides those of every backbone."""
    dataset: str | None = None
    """The title of the dataset that it was trained on."""
    base_model: str | None = None
    """The repository in the Hugging Face Hub, or in this service's, that it was made from."""
    task: str = PIPELINE_TAG
    """What it does, by the hub's name."""


def front_matter(
    name: str,
    formats: Sequence[str],
    license_id: str | None,
    license_link: str | None,
    described: Described,
    evaluated_on: str | None,
    results: Mapping[str, float],
) -> str:
    """The YAML of the card in a repository with some formats, or in the version's folder with all of them.

    ``evaluated_on`` is the title of a dataset; None leaves it out. ``results`` are evaluation results of the exported
    network by metric.
    """
    matter: dict[str, Any] = {
        **_license(license_id, license_link),
        "library_name": next(library for key, library in LIBRARIES.items() if key in formats),
        "pipeline_tag": described.task,
        "tags": [described.task, "vit", *described.tags],
    }
    if described.base_model:
        matter["base_model"] = described.base_model
    if described.dataset:
        matter["datasets"] = [described.dataset]
    reported = list(_results(evaluated_on, results))
    if {*PROBE_OF, FINETUNE_TOP1} & results.keys():
        matter["metrics"] = ["accuracy"]
    if reported:
        matter["model-index"] = [{"name": name, "results": reported}]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n"


def _license(license_id: str | None, license_link: str | None) -> dict[str, str]:
    """A licence that the hub does not know is ``other``, with a name."""
    known = (license_id or "unknown").lower()
    if known in HUB_LICENSES - {"other"}:
        return {"license": known}
    link = {"license_link": license_link} if license_link else {}
    return {"license": "other"} | ({} if known == "other" else {"license_name": known}) | link


def _results(evaluated_on: str | None, results: Mapping[str, float]) -> Iterator[dict[str, Any]]:
    dataset = f"held-out images of {evaluated_on}" if evaluated_on else "held-out images"
    for key, (task, task_name, metric) in RESULTS.items():
        if key in results and math.isfinite(results[key]):
            yield {
                "task": {"type": task, "name": task_name},
                "dataset": {"type": _identifier(evaluated_on or "unnamed"), "name": dataset},
                "metrics": [{"type": metric, "value": results[key], "name": key}],
            }


def _identifier(title: str) -> str:
    return re.sub(r"[^a-z0-9._/]+", "-", title.lower()).strip("-") or "unnamed"
