"""A version's folder, made of a kept checkpoint and its run: files, tags, the card and its snippets."""

import hashlib
import importlib.util
import io
import json
import re
import shutil
from collections.abc import Callable
from importlib.metadata import version as version_of
from pathlib import Path
from types import SimpleNamespace

import mlflow.pyfunc
import numpy
import pytest
import torch
from loops import make_spec, run_loop
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor

import trainer
from trainer.attempt import worker, workers
from trainer.attempt.commands import CommandListener
from trainer.errors import SpecRefused
from trainer.export import verify
from trainer.export.curves import draw_curves
from trainer.export.registration import KeptCheckpoint, register_checkpoint
from trainer.export.version import code_version
from trainer.kinds import publish as publish_kind
from trainer.kinds.publish import publish
from trainer.models.rc_mae import MaskedAutoencoder
from trainer.protocol import names
from trainer.protocol.names import outcome_file
from trainer.protocol.outcome import Outcome
from trainer.protocol.request import AttemptRequest, Source
from trainer.spec import metric_keys
from trainer.spec.job import parse_spec
from trainer.storage import Store
from trainer.training.state import TEACHER

FORMATS = ["timm", "hf", "hf-mae", "torch_export"]
EPOCHS, STEPS = 3, 15


class Registry:
    """Stands for MLflow: what a run had logged, and what was registered."""

    def __init__(self, memory, folder: Path) -> None:
        self.memory, self.folder, self.made, self.params = memory, folder, [], {}

    def read(self, run_id, keys, last_step):
        assert run_id == "run-a", "that of the job that trained"
        curves = {key: [(step, v) for step, v in self.memory.curve(key).items() if step <= last_step] for key in keys}
        return SimpleNamespace(tags=self.memory.tags, curves={key: found for key, found in curves.items() if found})

    def register(self, name, directory, about) -> int:
        target = self.folder / f"version-{len(self.made) + 1}"
        shutil.copytree(directory, target)
        self.made.append((name, target, about.tags, about.run_id))
        self.params = about.params
        return len(self.made)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short real run with a checkpoint and an evaluation of every epoch."""
    folder = tmp_path_factory.mktemp("trained")
    spec = make_spec(
        optimization={"epochs": EPOCHS}, evaluation={"every_epochs": 1, "probes": "auto"},
        export={"formats": FORMATS, "license": "cc-by-4.0"}, register_as="digits",
    )  # fmt: skip
    ending, memory = run_loop(spec, folder)
    assert ending.checkpoint.manifest.step == STEPS
    return SimpleNamespace(spec=spec, folder=folder, ending=ending, memory=memory)


def request_for(spec, trained, **parts) -> AttemptRequest:
    told = {
        "job_id": "job-a",
        "attempt": 1,
        "run_id": "run-a",
        "tracking_uri": "x",
        "artifact_uri": str(trained.folder),
    }
    return AttemptRequest(**told | parts, spec=spec)


@pytest.fixture(scope="module")
def version(trained, tmp_path_factory):
    """What the end of the job registers."""
    registry = Registry(trained.memory, tmp_path_factory.mktemp("registry"))
    spec, store = trained.spec, Store(str(trained.folder))
    checkpoint = KeptCheckpoint("job-a", "run-a", store, trained.ending.checkpoint)
    register_checkpoint(checkpoint, "digits", spec.export, "job-a", registry, registry)
    ((name, folder, tags, source_run),) = registry.made
    return SimpleNamespace(name=name, folder=folder, tags=tags, source_run=source_run)


def kept(trained, registry, wanted=lambda: None, **parts):
    spec = parse_spec({"kind": "publish", "job": "job-a", "register_as": "early"} | parts)
    source = Source(job_id="job-a", run_id="run-a", artifact_uri=str(trained.folder))
    request = request_for(spec, trained, job_id="job-p", run_id="run-p", artifact_uri="/nowhere", source=source)
    return publish(request, registry, registry, wanted)


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_version_has_every_format_that_was_asked_for_and_what_tells_of_it(version):
    assert sorted(file.name for file in version.folder.iterdir()) == sorted(
        [
            *FORMATS,
            "README.md",
            "card",
            "spec.json",
            "metrics.json",
            "SHA256SUMS",
            "MLmodel",
            "requirements.txt",
            "code",
        ]
    )
    assert sorted(file.name for file in (version.folder / "card").iterdir()) == ["curves.png", "reconstructions.png"]


def test_the_sums_are_those_of_every_other_file(version):
    listed = dict(reversed(line.split("  ", 1)) for line in (version.folder / "SHA256SUMS").read_text().splitlines())
    files = {file for file in version.folder.rglob("*") if file.is_file() and file.name != "SHA256SUMS"}
    assert {version.folder / name for name in listed} == files
    for name, digest in listed.items():
        assert hashlib.sha256((version.folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("form", ["hf", "hf-mae", "torch_export"])
def test_its_features_are_the_checkpoint_s_teacher_s(trained, version, form):
    checkpoint = trained.folder / trained.ending.checkpoint.folder
    result = verify.compare(checkpoint, version.folder / form)
    assert result.pop("max_abs_difference") < 1e-5
    assert result == {"keys_missing": [], "keys_unexpected": [], "keys_mismatched": []}


@pytest.mark.parametrize("form", ["hf", "torch_export"])
def test_mlflow_s_own_loader_gives_the_checkpoint_s_features_without_pickle(trained, version, tmp_path, form):
    """Of the first format that the version has; the code that loads it stands beside the weights."""
    folder = tmp_path / "version"
    others = [other for other in FORMATS if other != form]
    shutil.copytree(version.folder, folder, ignore=shutil.ignore_patterns(*others) if form != "hf" else None)
    checkpoint = trained.folder / trained.ending.checkpoint.folder
    ours = MaskedAutoencoder(trained.spec.model).eval()
    ours.load_state_dict(load_file(checkpoint / TEACHER))
    model = trained.spec.model
    images = torch.randn(3, model.in_chans, model.height, model.width, generator=torch.Generator().manual_seed(0))
    found = mlflow.pyfunc.load_model(str(folder))
    with torch.no_grad():
        expected = ours.encode(images).numpy()
    assert abs(found.predict(images.numpy()) - expected).max() < 1e-5
    assert found.metadata.get_input_schema().input_types() == [numpy.dtype("float32")]
    with pytest.raises(mlflow.exceptions.MlflowException, match="shape"):
        found.predict(images[:, :, 1:].numpy())
    assert not [file for file in version.folder.rglob("*") if file.suffix in {".pkl", ".pickle"}]


def test_timm_s_weights_are_the_checkpoint_s_teacher_s(trained, version):
    teacher = load_file(trained.folder / trained.ending.checkpoint.folder / TEACHER)
    found = load_file(version.folder / "timm/model.safetensors")
    assert all(torch.equal(value, teacher[name]) for name, value in found.items())


def test_the_spec_is_one_that_trains_it_again(trained, version):
    assert parse_spec(json.loads((version.folder / "spec.json").read_text())) == trained.spec


def test_the_metrics_are_the_last_evaluation_s_and_the_curves_by_epoch(trained, version):
    found = json.loads((version.folder / "metrics.json").read_text())
    assert (found["step"], found["epochs"]) == (STEPS, EPOCHS)
    last = {key: trained.memory.curve(key)[STEPS] for key in trained.memory.rows[STEPS] if key.startswith("eval/")}
    probes = {f"eval/{probe}_top1{weights}" for probe in ("linear", "knn") for weights in ("", "_random_init")}
    assert set(last) == {"eval/reconstruction_ratio"} | probes
    assert found["evaluation"] == {"step": STEPS, "values": last}
    loss = trained.memory.curve("train/loss")
    curve = found["curves"]["train/loss"]
    assert curve["last"] == [EPOCHS, loss[max(loss)]]
    assert curve["least"][1] == min(loss.values())
    assert curve["greatest"][1] == max(loss.values())
    assert [value for _, value in curve["points"]] == list(loss.values())


def test_its_tags_tell_where_it_comes_from(trained, version):
    evaluation = trained.ending.checkpoint.manifest.metrics
    assert version.tags == {
        names.TAG_SPEC: trained.spec.sha256(),
        names.TAG_DATASET: trained.ending.data.fingerprint,
        names.TAG_DATASET_NAME: "scikit-learn's digits",
        names.TAG_METHOD: "rc_mae",
        names.TAG_EPOCHS: "3",
        names.TAG_SOURCE_JOB: "job-a",
        names.TAG_CHECKPOINT: f"checkpoints/a1/{STEPS:08d}",
        names.TAG_STEP: str(STEPS),
        names.TAG_CODE: code_version(),
        names.TAG_FORMATS: "timm,hf,hf-mae,torch_export",
        names.TAG_NETWORK: "teacher",
        names.TAG_LICENSE: "cc-by-4.0",
        **{f"rcmae.metric.{key}": repr(value) for key, value in evaluation.items()},
    }
    assert (version.name, version.source_run) == ("digits", "run-a")
    assert float(version.tags["rcmae.metric.eval/linear_top1"]) == evaluation["eval/linear_top1"]
    mlflow_s = re.compile(r"^[/\w.\- :]*$")
    assert all(mlflow_s.match(key) and len(key) <= 250 for key in version.tags)


def test_the_code_version_is_the_package_s_and_the_source_s():
    assert re.fullmatch(re.escape(version_of("rcmae")) + r"\+[0-9a-f]{12}", code_version())


def test_the_code_version_tells_any_change_of_the_source_and_nothing_else(tmp_path):
    def installed(folder: str, change: Callable[[Path], object] = lambda _: None) -> str:
        """The code version of a trainer installed elsewhere, changed before it was started."""
        copied = shutil.copytree(Path(trainer.__path__[0]), tmp_path / folder / "trainer")
        change(copied)
        found = importlib.util.spec_from_file_location(f"version_{folder}", copied / "export/version.py")
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        return module.code_version()

    assert installed("elsewhere") == code_version()
    assert installed("not_source", lambda copied: (copied / "README.md").write_text("Read me.")) == code_version()
    others = {
        installed("changed", lambda copied: (copied / "data/sampler.py").open("a").write("# another line\n")),
        installed("renamed", lambda copied: (copied / "data/scan.py").rename(copied / "data/scanning.py")),
        installed("moved", lambda copied: (copied / "data/scan.py").rename(copied / "scan.py")),
        installed("added", lambda copied: (copied / "data/empty.py").touch()),
        installed("removed", lambda copied: (copied / "data/scan.py").unlink()),
    }
    assert len(others | {code_version()}) == 6


# --- an earlier checkpoint -------------------------------------------------------------------------------------------


def test_an_earlier_checkpoint_is_published_with_what_was_known_by_then(trained, tmp_path):
    registry = Registry(trained.memory, tmp_path)
    assert kept(trained, registry, checkpoint="checkpoints/a1/00000005") is None
    ((name, folder, tags, source_run),) = registry.made
    assert (name, source_run) == ("early", "run-a")
    assert (tags[names.TAG_EPOCHS], tags[names.TAG_STEP]) == ("1", "5")
    assert tags[names.TAG_SOURCE_JOB] == "job-a"
    assert float(tags["rcmae.metric.eval/linear_top1"]) == trained.memory.curve("eval/linear_top1")[5]
    found = json.loads((folder / "metrics.json").read_text())
    assert max(epoch for curve in found["curves"].values() for epoch, _ in curve["points"]) == 1
    assert (folder / "card/reconstructions.png").read_bytes() == (trained.folder / names.picture_file(5)).read_bytes()
    assert verify.compare(trained.folder / "checkpoints/a1/00000005", folder / "hf")["max_abs_difference"] < 1e-5
    assert verify.compare(trained.folder / f"checkpoints/a1/{STEPS:08d}", folder / "hf")["max_abs_difference"] > 1e-3
    card = (folder / "README.md").read_text()
    assert "after 1 of 3 epochs" in card
    assert "`job-p`" in card


def test_without_a_name_it_is_the_newest_checkpoint_and_the_job_s_own_export(trained, tmp_path):
    registry = Registry(trained.memory, tmp_path)
    assert kept(trained, registry) is None
    ((_, folder, tags, _),) = registry.made
    assert tags[names.TAG_STEP] == str(STEPS)
    assert tags[names.TAG_FORMATS] == ",".join(FORMATS)
    assert (folder / "hf-mae").is_dir()


def test_the_student_is_published_where_it_is_asked_for(trained, tmp_path):
    registry = Registry(trained.memory, tmp_path)
    kept(trained, registry, export={"network": "student", "formats": ["hf"]})
    ((_, folder, tags, _),) = registry.made
    assert (tags[names.TAG_NETWORK], tags[names.TAG_FORMATS]) == ("student", "hf")
    assert (registry.params["export.network"], registry.params["export.formats"]) == ("student", '["hf"]')
    assert not (folder / "timm").exists()
    checkpoint = trained.folder / trained.ending.checkpoint.folder
    assert verify.compare(checkpoint, folder / "hf", "student")["max_abs_difference"] < 1e-5
    assert verify.compare(checkpoint, folder / "hf", "teacher")["max_abs_difference"] > 1e-3
    assert "the student's" in (folder / "README.md").read_text()


def test_pixels_are_compared_by_pillow_also_where_torchvision_is_installed(trained, version, tmp_path, monkeypatch):
    asked, load = [], AutoImageProcessor.from_pretrained
    monkeypatch.setattr(
        AutoImageProcessor, "from_pretrained", lambda *args, **options: asked.append(options) or load(*args, **options)
    )
    Image.new("RGB", (50, 40), (200, 100, 50)).convert("L").save(tmp_path / "picture.png")
    checkpoint = trained.folder / trained.ending.checkpoint.folder
    told = verify.compare(checkpoint, version.folder / "hf", pictures=[tmp_path / "picture.png"])
    assert told[verify.PIXELS] < 1e-5
    assert asked == [{"backend": "pil"}]


def test_a_checkpoint_that_is_gone_is_told(trained, tmp_path):
    registry = Registry(trained.memory, tmp_path)
    with pytest.raises(SpecRefused, match="checkpoints/a1/00000007 of job job-a does not exist"):
        kept(trained, registry, checkpoint="checkpoints/a1/00000007")
    source = Source(job_id="job-a", run_id="run-a", artifact_uri=str(trained.folder), since_attempt=2)
    spec = parse_spec({"kind": "publish", "job": "job-a", "register_as": "early"})
    request = request_for(spec, trained, job_id="job-p", source=source)
    with pytest.raises(SpecRefused, match="the newest of job job-a does not exist"):
        publish(request, registry, registry, lambda: None)
    assert not registry.made


def test_a_command_ends_it_before_anything_is_registered(trained, tmp_path):
    registry = Registry(trained.memory, tmp_path)
    assert kept(trained, registry, wanted=lambda: "cancel") == "cancel"
    assert not registry.made


def test_a_teacher_of_mae_is_refused(tmp_path):
    spec = make_spec(optimization={"epochs": 1}, method={"name": "mae"})
    _, memory = run_loop(spec, tmp_path)
    trained, registry = SimpleNamespace(folder=tmp_path), Registry(memory, tmp_path)
    with pytest.raises(SpecRefused, match=r"export\.network: method mae has no teacher"):
        kept(trained, registry, export={"network": "teacher"})
    kept(trained, registry, export={"formats": ["hf"]})
    assert registry.made[0][2][names.TAG_NETWORK] == "student"


def test_weights_that_are_not_what_was_written_are_not_published(trained, tmp_path):
    shutil.copytree(trained.folder / "checkpoints", tmp_path / "checkpoints")
    damaged = tmp_path / f"checkpoints/a1/{STEPS:08d}/teacher.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    registry = Registry(trained.memory, tmp_path)
    with pytest.raises(SpecRefused, match=r"^checkpoint: .*teacher\.safetensors: missing or not .* Choose another one"):
        kept(SimpleNamespace(folder=tmp_path), registry)
    assert not registry.made


class Channel:
    """A run that holds no command."""

    closed = False

    def read_command(self) -> None:
        return None

    def heartbeat(self, activity: object) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def test_a_worker_does_what_the_kind_says(trained, tmp_path, monkeypatch):
    """Of a job that publishes: no data, no training, and an outcome in its own folder as its last act."""
    registry, channel = Registry(trained.memory, tmp_path), Channel()
    spec = parse_spec({"kind": "publish", "job": "job-a", "register_as": "early", "export": {"formats": ["timm"]}})
    source = Source(job_id="job-a", run_id="run-a", artifact_uri=str(trained.folder))
    own = tmp_path / "own"
    request = request_for(spec, trained, job_id="job-p", run_id="run-p", artifact_uri=str(own), source=source)
    for name in ("registry.BackboneRegistry", "history.HistoryReader"):
        monkeypatch.setattr(f"trainer.tracking.{name}", lambda *_: registry)
    connection = worker.Connection(channel, CommandListener(channel, 1))
    monkeypatch.setattr(worker, "record_worker", lambda *_: None)
    monkeypatch.setattr(
        workers.ray.train, "get_context",
        lambda: SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1),
    )  # fmt: skip
    workers.train_worker(
        {"request": request.model_dump_json(), "work": publish_kind.work, "connect": lambda _: connection}
    )
    outcome = Outcome.model_validate_json((own / outcome_file(1)).read_text())
    assert (outcome.state, outcome.checkpoint) == ("succeeded", None)
    assert channel.closed
    ((name, folder, tags, _),) = registry.made
    assert (name, tags[names.TAG_FORMATS], tags[names.TAG_SOURCE_JOB]) == ("early", "timm", "job-a")
    assert "`job-p`" in (folder / "README.md").read_text()


# --- the card --------------------------------------------------------------------------------------------------------


def test_the_card_tells_of_training_evaluation_licence_and_lineage(trained, version):
    card = (version.folder / "README.md").read_text()
    for told in (
        "scikit-learn's digits, 1,797 images", "for images of 32 x 32 pixels with 1 channel", "mask ratio 0.75",
        "15 steps of 300 images", "| `job-a`, attempt 1 |", "`run-a`", f"`{trained.spec.sha256()}`",
        f"`{code_version()}`", f"`{trained.ending.data.fingerprint}`", "## Licence\n\n`cc-by-4.0`",
    ):  # fmt: skip
        assert told in card, told
    found = trained.ending.checkpoint.manifest.metrics
    linear, random = found[metric_keys.LINEAR_TOP1], found[metric_keys.LINEAR_TOP1_RANDOM_INIT]
    assert f"| `eval/linear_top1` | {linear:.4f} | {random:.4f} | teacher |" in card
    assert f"| `eval/reconstruction_ratio` | {found[metric_keys.RECONSTRUCTION_RATIO]:.4f} | – | student |" in card
    for target in re.findall(r"\]\(([^)]+)\)", card):
        assert (version.folder / target).is_file(), target


def test_its_pictures_are_pictures(version):
    for name in ("curves.png", "reconstructions.png"):
        picture = Image.open(version.folder / "card" / name)
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 100


def test_curves_are_drawn_whatever_there_is():
    assert draw_curves({}) is None
    assert draw_curves({metric_keys.LEARNING_RATE: [(0, 1.0)]}) is None
    one = Image.open(io.BytesIO(draw_curves({metric_keys.LOSS_RECONSTRUCTION: [(0.5, 1.0)]})))
    two = Image.open(
        io.BytesIO(draw_curves({metric_keys.LOSS_RECONSTRUCTION: [(0.5, 1.0)], "eval/x": [(0, 1), (1, 2)]}))
    )
    assert two.size[0] == 2 * one.size[0]
    assert one.convert("L").getextrema() == (0, 255)
