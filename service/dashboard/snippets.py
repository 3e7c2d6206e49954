"""Code snippets that load a version: those of its model card, with this service's address and this version's number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from service.backbones.schemas import VersionView
from trainer.spec.formats import HUB_ORGANISATION

HUB_TOOLS: Final = ("transformers", "timm")
"""The card's headings for tools that load from a hub."""
UNTRAINED: Final = {
    "transformers": " Nothing has trained a pooler: without add_pooling_layer=False, pooler_output is random numbers."
}
"""What else to know of a tool."""
MLFLOW: Final = "MLflow"
"""The card's heading for loading from MLflow."""


@dataclass(frozen=True)
class Snippet:
    """The code that loads a version with one tool."""

    title: str
    text: str
    code: str
    language: str = "python"


def snippets(version: VersionView, main: bool, server: str, code: Mapping[str, str]) -> Iterator[Snippet]:
    """``main`` says whether the version is loaded by default; ``code`` is the card's code, by heading."""
    name, number = version.name, version.version
    for tool in HUB_TOOLS:
        if tool in code:
            set_endpoint = f'import os\n\nos.environ["HF_ENDPOINT"] = {json.dumps(f"{server}/hf")}  # before imports\n'
            note = UNTRAINED.get(tool, "") if version.type == "backbone" else ""
            text = f"Set HF_TOKEN to your token.{note}"
            yield Snippet(tool, text, set_endpoint + (code[tool] if main else _pinned(code[tool], name, number)))
    if MLFLOW in code:
        text = (
            "Works on hosts that reach MLflow and its artifact store. Set MLFLOW_TRACKING_URI to MLflow's address. "
            "If it asks for a password, `rcmae status` says which, for MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD."
        )
        yield Snippet(MLFLOW, text, code[MLFLOW].replace(f"models:/{name}/latest", f"models:/{name}/{number}"))
    if version.formats:
        export_format = version.formats[0]
        pull = _pull(f"{name}:{number}", export_format, name, server)
        yield Snippet("rcmae", "Set RCMAE_TOKEN to your token.", pull, "bash")
        text = "Downloads a tar with the card and the checksums. Set RCMAE_TOKEN to your token."
        yield Snippet("curl", text, _curl(name, number, export_format, server), "bash")


def _pinned(code: str, name: str, number: int) -> str:
    """Code that loads one version instead of the default one."""
    repository = f"{HUB_ORGANISATION}/{name}"
    code = code.replace(f'"{repository}"', f'"{repository}", revision="v{number}"')
    return code.replace(f'"hf-hub:{repository}-timm"', f'"hf-hub:{repository}-timm@v{number}"')


def _pull(reference: str, export_format: str, name: str, server: str) -> str:
    options = f"--format {export_format} --out {name}-{export_format}"
    return f"export RCMAE_URL={server}\nrcmae backbones pull {reference} {options}"


def _curl(name: str, number: int, export_format: str, server: str) -> str:
    url = f"{server}/v1/backbones/{quote(name)}/versions/{number}/archive?format={export_format}"
    return f'curl -fsS -H "Authorization: Bearer $RCMAE_TOKEN" \\\n  "{url}" | tar x'
