"""How a version is loaded, as code to copy: its card's, with this service's address and for exactly this version."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from service.backbones.schemas import VersionView
from trainer.spec.formats import HUB_ORGANISATION

HUB: Final = ("transformers", "timm")
"""The card's headings of what takes files from a hub, and, below, of what takes them from MLflow."""
MLFLOW: Final = "MLflow"


@dataclass(frozen=True)
class Way:
    """One tool's code."""

    title: str
    text: str
    code: str
    language: str = "python"


def ways(version: VersionView, main: bool, server: str, code: Mapping[str, str]) -> Iterator[Way]:
    """``main`` says that the version is what is loaded where none is named, ``code`` is the card's by its headings."""
    name, number = version.name, version.version
    for tool in HUB:
        if tool in code:
            begin = f'import os\n\nos.environ["HF_ENDPOINT"] = {json.dumps(f"{server}/hf")}  # before what reads it\n'
            text = "With a token of yours in HF_TOKEN."
            yield Way(tool, text, begin + (code[tool] if main else _pinned(code[tool], name, number)))
    if MLFLOW in code:
        text = "From where MLflow and its artifacts can be reached; MLFLOW_TRACKING_URI names it."
        yield Way(MLFLOW, text, code[MLFLOW].replace(f"models:/{name}/latest", f"models:/{name}/{number}"))
    if version.formats:
        form = version.formats[0]
        reference = f"{name}:{number}"
        yield Way("rcmae", "With the token in RCMAE_TOKEN.", _pull(reference, form, name, server), "bash")
        yield Way("curl", "A tar, with the card and the checksums.", _curl(name, number, form, server), "bash")


def _pinned(code: str, name: str, number: int) -> str:
    """The same code for one version instead of the one that is loaded where none is named."""
    repository = f"{HUB_ORGANISATION}/{name}"
    code = code.replace(f'"{repository}"', f'"{repository}", revision="v{number}"')
    return code.replace(f'"hf-hub:{repository}-timm"', f'"hf-hub:{repository}-timm@v{number}"')


def _pull(reference: str, form: str, name: str, server: str) -> str:
    return f"export RCMAE_URL={server}\nrcmae backbones pull {reference} --format {form} --out {name}-{form}"


def _curl(name: str, number: int, form: str, server: str) -> str:
    place = f"{server}/v1/backbones/{quote(name)}/versions/{number}/archive?format={form}"
    return f'curl -fsS -H "Authorization: Bearer $RCMAE_TOKEN" \\\n  "{place}" | tar x'
