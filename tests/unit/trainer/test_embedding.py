"""Features of a dataset's images as files: what is in them, and that they are the same however they came to be."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from image_sets import place, samples, write_folder
from loops import Memory, make_spec, run_loop
from sklearn.datasets import load_digits
from worlds import on_ranks

from trainer.data.cache import Cache
from trainer.data.dataset import open_images
from trainer.embedding.parts import Parts
from trainer.embedding.run import embed
from trainer.errors import SpecRefused
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.protocol.embeddings import Embeddings
from trainer.protocol.request import AttemptRequest, Source
from trainer.scoring.place import Place
from trainer.scoring.subjects import load_subject
from trainer.spec.cluster import ClusterShape
from trainer.spec.embed import EmbedSpec
from trainer.spec.job import parse_spec
from trainer.spec.plan import resolve
from trainer.storage import Store

DIGITS, PER_FILE = 1797, 500


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a short run on digits."""
    folder = tmp_path_factory.mktemp("trained")
    run_loop(make_spec(optimization={"epochs": 1}), folder)
    return folder


def request_of(trained: Path, folder: Path, attempt: int = 1, since: int = 1, **parts) -> AttemptRequest:
    shortest = {"kind": "embed", "backbone": {"job": "job-a"}, "dataset": {"uri": "builtin://digits"}}
    spec = resolve(parse_spec(shortest | {"rows_per_file": PER_FILE} | parts), ClusterShape.of(cpus=1))
    return AttemptRequest(
        job_id="job-e", run_id="run-e", tracking_uri="x", attempt=attempt, since_attempt=since,
        artifact_uri=str(folder), source=Source(job_id="job-a", run_id="run-a", artifact_uri=str(trained)), spec=spec,
    )  # fmt: skip


def run(request: AttemptRequest, wanted=lambda: None):
    """One attempt in this process: the command that ended it, and what it recorded."""
    folder, memory = Path(request.artifact_uri), Memory()
    worker = Place(Store(str(folder)), torch.device("cpu"), memory, wanted, cache=Cache(folder.parent / "cache"))
    assert isinstance(request.spec, EmbedSpec)
    return embed(request, request.spec, worker), memory


def work(ranks, request: str) -> None:
    """One rank of an attempt."""
    told = AttemptRequest.model_validate_json(request)
    memory = Memory() if ranks.rank == 0 else None
    worker = Place(
        Store(told.artifact_uri), torch.device("cpu"), memory, cache=Cache(Path(told.artifact_uri) / "cache")
    )
    embed(told, told.spec, worker)


def sums(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((folder / "embeddings").iterdir())
    }


def written(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "embeddings").glob("*.parquet"))}


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """A complete attempt with patch tokens, by one process."""
    folder = tmp_path_factory.mktemp("whole")
    action, memory = run(request_of(trained, folder, patch_tokens=True))
    assert action is None
    return SimpleNamespace(
        folder=folder, memory=memory, table=pq.read_table(folder / "embeddings" / "part-00000.parquet")
    )


# --- what is in the files ---------------------------------------------------------------------------------------------


def test_a_row_has_the_images_name_its_class_and_what_the_network_makes_of_it(trained, whole, tmp_path):
    files = sorted((whole.folder / "embeddings").glob("*.parquet"))
    tables = [pq.read_table(file) for file in files]
    assert [table.num_rows for table in tables] == [500, 500, 500, 297]
    told = Embeddings.model_validate_json((whole.folder / "embeddings" / "schema.json").read_bytes())
    assert (told.files, told.rows_per_file, told.dataset.images) == (4, PER_FILE, DIGITS)
    assert (told.dataset.uri, told.pooling, told.precision, told.labels) == ("builtin://digits", "mean", "fp32", DIGITS)
    for table in tables:
        assert json.loads(table.schema.metadata[b"rcmae"]) == told.model_dump(mode="json")

    request = request_of(trained, whole.folder)
    subject = load_subject(request.spec.backbone, request)
    network = MaskedAutoencoder(subject.model)
    network.load_state_dict(dict(subject.state), strict=False)
    images = open_images(request.spec.dataset, 1, subject.view.size, place(tmp_path), subject.scale)
    pixels = torch.from_numpy(images.fitted(np.arange(DIGITS), subject.view.size)) / 255
    mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (told.mean, told.std))
    with torch.no_grad():
        tokens = network.eval().encode((pixels - mean) / std)[:, 1:]
    features = np.concatenate([np.stack(table["features"].to_numpy()) for table in tables])
    assert features.dtype == np.float32
    assert np.abs(features - tokens.mean(dim=1).numpy()).max() < 1e-4
    patches, width = told.patch_tokens
    kept = np.concatenate([np.stack(table["patch_tokens"].to_numpy()) for table in tables])
    assert kept.dtype == np.float16
    kept = kept.reshape(DIGITS, patches, width).astype(np.float32)
    assert np.abs(kept.mean(axis=1) - features).max() < 2e-3
    assert len({key for table in tables for key in table["key"].to_pylist()}) == DIGITS
    labels = [label for table in tables for label in table["label"].to_pylist()]
    assert labels == [str(label) for label in load_digits().target]


def test_images_without_labels_have_null_labels_and_half_precision_is_kept_as_such(trained, tmp_path):
    made = samples(20)
    folder = Path(write_folder(tmp_path / "set", made))
    for path in list(folder.rglob("*.*")):
        path.rename(folder / path.name)
    run(request_of(trained, tmp_path / "run", dataset={"uri": str(folder)}, dtype="float16", features={"layer": 1}))
    table = pq.read_table(tmp_path / "run" / "embeddings" / "part-00000.parquet")
    assert table["label"].to_pylist() == [None] * 20
    assert table["key"].to_pylist() == sorted(sample.name.rpartition("/")[2] for sample in made)
    values = np.stack(table["features"].to_numpy())
    assert (values.dtype, bool(np.isfinite(values).all())) == (np.float16, True)
    assert values.std(axis=0).min() > 0


def test_a_block_that_the_network_does_not_have_is_refused(trained, tmp_path):
    with pytest.raises(SpecRefused, match=r"features.layer: is 99, and the network has \d blocks"):
        run(request_of(trained, tmp_path, features={"layer": 99}))


def test_how_far_it_is_is_told_in_images(whole):
    done = list(whole.memory.rows)
    assert (done[0], done[-1]) == (0, DIGITS)
    assert done == sorted(done)
    assert whole.memory.tags["rcmae.total_steps"] == str(DIGITS)


# --- the same files however they came to be ---------------------------------------------------------------------------


@pytest.mark.parametrize("world", [2, 3])
def test_the_files_do_not_depend_on_the_number_of_workers(trained, whole, tmp_path, world):
    request = request_of(trained, tmp_path / "run", patch_tokens=True)
    assert on_ranks(world, tmp_path / "world", work, request.model_dump_json()) == [None] * world
    assert sums(tmp_path / "run") == sums(whole.folder)


def test_an_attempt_that_ends_between_files_is_continued(trained, whole, tmp_path):
    asked = 0

    def soon() -> str | None:
        nonlocal asked
        asked += 1
        return "pause" if asked > 12 else None  # in the second file of eight blocks

    request = request_of(trained, tmp_path / "run", patch_tokens=True)
    action, _ = run(request, soon)
    assert action == "pause"
    before = written(tmp_path / "run")
    assert list(before) == ["part-00000.parquet"]
    assert not (tmp_path / "run" / "embeddings" / "schema.json").exists()
    run(request_of(trained, tmp_path / "run", attempt=2, patch_tokens=True))
    assert sums(tmp_path / "run") == sums(whole.folder)
    assert written(tmp_path / "run")["part-00000.parquet"] == before["part-00000.parquet"]


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "another"])
def test_a_damaged_file_is_written_again_and_no_other(trained, whole, tmp_path, harm):
    folder = tmp_path / "run"
    run(request_of(trained, folder, patch_tokens=True))
    file = folder / "embeddings" / "part-00001.parquet"
    data = bytearray(file.read_bytes())
    if harm == "cut":
        del data[len(data) // 2 :]
    elif harm == "flipped":
        data[len(data) // 3] ^= 1
    elif harm == "empty":
        data.clear()
    else:
        data = bytearray((folder / "embeddings" / "part-00002.parquet").read_bytes())
    file.write_bytes(data)
    (folder / "embeddings" / "part-00009.parquet").write_bytes(b"of a larger dataset")
    before = written(folder)
    run(request_of(trained, folder, attempt=2, patch_tokens=True))
    assert sums(folder) == sums(whole.folder)
    changed = [name for name, moment in written(folder).items() if before[name] != moment]
    assert changed == ["part-00001.parquet"]


def test_files_of_another_network_are_not_taken_and_a_new_start_takes_none(trained, whole, tmp_path):
    folder = tmp_path / "run"
    run(request_of(trained, folder, features={"pooling": "cls"}, patch_tokens=True))
    assert sums(folder) != sums(whole.folder)
    run(request_of(trained, folder, attempt=2, patch_tokens=True))
    assert sums(folder) == sums(whole.folder)
    before = written(folder)
    run(request_of(trained, folder, attempt=3, since=3, patch_tokens=True))
    assert all(moment != before[name] for name, moment in written(folder).items())


def test_a_file_appears_whole_or_not_at_all(trained, tmp_path, monkeypatch):
    """The process dies while a file is written."""
    dying = Parts.write

    def die(self, number, *values):
        if number == 1:
            (tmp_path / "run" / "embeddings" / ".tmp-left").write_bytes(b"half")
            raise KeyboardInterrupt
        dying(self, number, *values)

    monkeypatch.setattr(Parts, "write", die)
    with pytest.raises(KeyboardInterrupt):
        run(request_of(trained, tmp_path / "run"))
    monkeypatch.setattr(Parts, "write", dying)
    run(request_of(trained, tmp_path / "run", attempt=2))
    names = [path.name for path in sorted((tmp_path / "run" / "embeddings").iterdir())]
    assert names == [*(f"part-{number:05d}.parquet" for number in range(4)), "schema.json"]
    pq.read_table(io.BytesIO((tmp_path / "run" / "embeddings" / names[1]).read_bytes()))
