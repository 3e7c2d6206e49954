"""The YAML at the top of a model card, which hubs and their clients read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from trainer.spec import metric_keys
from trainer.spec.export import ExportSpec
from trainer.spec.formats import LIBRARIES, PIPELINE_TAG

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
RESULTS: Final = {
    metric_keys.LINEAR_TOP1: ("image-classification", "Linear classification of frozen features", "accuracy"),
    metric_keys.RECONSTRUCTION_RATIO: (PIPELINE_TAG, "Reconstruction of masked patches", "reconstruction_ratio"),
}
"""The task's type and name, and the metric's type, of results that a card reports. Those for comparison are not its."""


def front_matter(
    name: str,
    export: ExportSpec,
    method: str,
    dataset: str | None,
    evaluated_on: str | None,
    results: Mapping[str, float],
    form: str | None = None,
) -> str:
    """The YAML of the card in the repository of a format, or for None in the version's folder.

    ``dataset`` and ``evaluated_on`` are titles; None leaves them out. ``results`` are evaluation results of
    the exported network by metric.
    """
    formats = (form,) if form else export.formats
    matter: dict[str, Any] = {
        **_license(export),
        "library_name": next(library for key, library in LIBRARIES.items() if key in formats),
        "pipeline_tag": PIPELINE_TAG,
        "tags": [PIPELINE_TAG, "vit", "masked-autoencoder", "self-supervised", method],
    }
    if dataset:
        matter["datasets"] = [dataset]
    reported = list(_results(evaluated_on, results))
    if metric_keys.LINEAR_TOP1 in results:
        matter["metrics"] = ["accuracy"]
    if reported:
        matter["model-index"] = [{"name": name, "results": reported}]
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n"


def _license(export: ExportSpec) -> dict[str, str]:
    """A licence that the hub does not know is ``other``, with a name."""
    known = (export.license or "unknown").lower()
    if known in HUB_LICENSES - {"other"}:
        return {"license": known}
    link = {"license_link": export.license_link} if export.license_link else {}
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
