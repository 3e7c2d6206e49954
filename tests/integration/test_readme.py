"""The commands in the READMEs work as written, links resolve, and tables of settings and reasons are complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from safetensors import safe_open

from service.jobs.lifecycle import POLICIES
from service.settings import Settings
from trainer.spec.base import read_document
from trainer.spec.job import parse_spec

README = Path(__file__).parents[2] / "README.md"
SERVICE = README.parent / "service"
PAGES = [*sorted(path.relative_to(README.parent) for path in README.parent.glob("[!.]*/*.md")), Path("README.md")]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_its_specs_are_accepted():
    first, steered, images = blocks("yaml")
    spec = parse_spec(read_document(first))
    assert spec.register_as == "digits"
    assert spec.resources.workers == 2
    spec = parse_spec(read_document(first) | read_document(steered))
    assert (spec.checkpoint.every_minutes, spec.retry.max_failures) == (30, 3)
    spec = parse_spec({"kind": "pretrain"} | read_document(images))
    assert (spec.dataset.uri, spec.dataset.cache) == ("s3://datasets/photos", "auto")


def test_a_job_with_curl_alone(stack, tmp_path):
    (script,) = [block for block in blocks("bash") if "call()" in block]
    assert "API=http://127.0.0.1:8000\n" in script
    printed = stack.bash(script.replace("API=http://127.0.0.1:8000\n", f"API={stack.url}\n"), tmp_path, timeout=400)
    assert '"state":"succeeded"' in printed
    assert printed.endswith("config.json: OK\npreprocessor_config.json: OK\nmodel.safetensors: OK\n")
    with safe_open(tmp_path / "digits-curl" / "model.safetensors", "pt") as weights:
        assert weights.get_tensor("embeddings.cls_token").shape == (1, 1, 64)


def anchors(page: Path) -> set[str]:
    """The anchors of a page, as code hosts derive them from its headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES, ids=str)
def test_every_link_of_a_page_leads_somewhere(name):
    page = README.parent / name
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def rows(page: str, first: str) -> dict[str, list[str]]:
    """The other cells of each table row whose first cell holds such names, by name. A cell may hold several names."""
    text = (SERVICE / page).read_text()
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {name: cells[1:] for cells in lines for name in re.findall(rf"`({first})`", cells[0])}


def test_every_setting_is_documented_with_its_default():
    documented = rows("operations.md", "RCMAE_[A-Z0-9_]+")
    assert set(documented) == {f"RCMAE_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        shown, default = documented[f"RCMAE_{name.upper()}"][0].split(" (")[0], field.default
        if isinstance(default, tuple):
            assert shown == ", ".join(f"`{each}`" for each in default), name
        elif isinstance(default, bool) or default is None or isinstance(default, str):
            words = {"none", "any number"} if default is None else {str(default).lower(), f"`{default}`"}
            assert shown in words, name
        elif field.is_required():
            assert shown == "none", name
        else:
            assert float(shown) == default, name


def test_every_reason_is_documented_with_its_policy():
    documented = {reason: cells[1:] for reason, cells in rows("jobs.md", "[a-z_]+").items() if len(cells) == 3}
    yes = {True: "yes", False: "no"}
    assert documented == {str(reason): [yes[p.retried], yes[p.charged]] for reason, p in POLICIES.items()}
