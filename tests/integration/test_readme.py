"""What the README tells people to type works as it stands there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from safetensors import safe_open

from trainer.spec.base import read_document
from trainer.spec.job import parse_spec

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def test_its_specs_are_accepted():
    first, images = blocks("yaml")
    spec = parse_spec(read_document(first))
    assert spec.register_as == "digits"
    assert spec.resources.workers == 2
    spec = parse_spec({"kind": "pretrain"} | read_document(images))
    assert (spec.dataset.uri, spec.dataset.cache) == ("s3://datasets/photos", "auto")


def test_a_job_with_curl_alone(stack, tmp_path):
    (script,) = [block for block in blocks("bash") if "curl -" in block]
    assert "API=http://127.0.0.1:8000\n" in script
    (tmp_path / ".rcmae").symlink_to(stack.state_dir)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script.replace("API=http://127.0.0.1:8000\n", f"API={stack.url}\n")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert '"state":"succeeded"' in done.stdout
    assert done.stdout.endswith("config.json: OK\npreprocessor_config.json: OK\nmodel.safetensors: OK\n")
    with safe_open(tmp_path / "digits-curl" / "model.safetensors", "pt") as weights:
        assert weights.get_tensor("embeddings.cls_token").shape == (1, 1, 64)


def test_every_file_it_points_to_exists():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target
