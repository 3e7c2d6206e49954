"""Jobs that have kept checkpoints, and the answer to a spec that names one wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service_fakes import add_job, problem, spec_with
from service_world import World

from trainer.protocol import names
from trainer.protocol.checkpoint import FileRecord, Manifest

CHECKPOINTS = ("checkpoints/a1/00000100", "checkpoints/a1/00000200")


def trained(world: World, root: Path, owner: str = "alice", state: str = "succeeded", **spec: Any) -> str:
    """A job that has kept two checkpoints, and one that was never committed."""
    folder = root / f"run-of-{owner}" / "artifacts"
    for path in CHECKPOINTS:
        step = int(path.rpartition("/")[2])
        files = {"student.safetensors": FileRecord(size=1, sha256="0" * 64)}
        manifest = Manifest(step=step, attempt=1, metrics={}, files=files)
        (folder / path).mkdir(parents=True)
        (folder / path / names.MANIFEST).write_text(manifest.model_dump_json())
    (folder / "checkpoints/a1/00000300").mkdir()
    return add_job(
        world.database, state, spec_with(**spec), owner=owner, attempts=1, run_id=f"run-of-{owner}",
        artifact_uri=str(folder),
    )  # fmt: skip


def refused(answer: Any, field: str, text: str) -> None:
    (found,) = problem(answer, 422, "spec_invalid")["problems"]
    assert found["field"] == field
    assert found["pointer"] == "/" + field.replace(".", "/")
    assert text in found["message"]
