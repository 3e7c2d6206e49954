"""Jobs that inspect a dataset: submission, progress, result, and what plans, pages and the command line make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from service_fakes import SPEC, add_job, job_of, problem
from service_world import World

from service.client.render_inspection import inspection as rendered
from trainer.protocol import names
from trainer.protocol.inspection import INSPECTION, Inspection, Quartiles, Sizes, SplitFound, Unread, Warned
from trainer.protocol.outcome import Outcome
from trainer.protocol.progress import Newest
from trainer.spec import metric_keys

URI = "file:///data/photos"
PROPOSED = {
    "dataset": {"uri": f"{URI}/train"},
    "model": {"in_chans": 3, "img_size": 64, "patch_size": 4},
    "optimization": {"global_batch_size": 64},
    "evaluation": {"dataset": {"uri": f"{URI}/val"}},
}


def found(**over: Any) -> Inspection:
    side = Quartiles(least=20, lower_quartile=30, median=64, upper_quartile=80, greatest=900)
    fields: dict[str, Any] = {
        "images": 1003, "inspected": 1003, "decoded": 1003, "bytes": 2**21, "formats": {"JPEG": 900, "PNG": 100},
        "sizes": Sizes(height=side, width=side), "channels": {3: 1000},
        "fitting_channels": {1: 1000, 3: 1000, 4: 1000}, "bits": {8: 1000}, "value_range": (0.0, 255.0),
        "scale": {"uint8": (0.0, 255.0)}, "classes": {"cat": 600, "<b>dog</b>": 400}, "class_count": 2,
        "labels_from": "folders", "unreadable": {".heic files cannot be read": Unread(count=3, first="a.HEIC")},
        "passed_over": {".txt": 2}, "duplicates": 7,
        "splits": {"train": SplitFound(uri=f"{URI}/train", images=900)}, "images_per_s_per_core": 812.5,
        "fingerprint": "f" * 64, "warnings": [Warned(code="splits_together", message="The splits are used together")],
        "proposed": PROPOSED,
    }  # fmt: skip
    return Inspection(**fields | over)


def submitted(served: Any, **dataset: Any) -> str:
    answer = served.post("/v1/jobs", json={"kind": "inspect", "dataset": {"uri": URI, **dataset}})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def completed(served: Any, world: World, result: Inspection, **dataset: Any) -> str:
    """An inspection that has succeeded with this result."""
    job_id = submitted(served, **dataset)
    world.rounds()
    world.run_attempt(job_id)
    folder = Path(job_of(world.database, job_id).artifact_uri)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INSPECTION).write_text(result.model_dump_json())
    (folder / "images").mkdir(exist_ok=True)
    (folder / names.SAMPLES_PICTURE).write_bytes(b"\x89PNG")
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(job_id) == "succeeded"
    return job_id


def test_an_inspection_is_a_job_like_any_other(served, world):
    job_id = submitted(served)
    world.rounds()
    (request,) = world.ray.requests
    assert request.spec.kind == "inspect"
    world.run_attempt(job_id)
    run = world.mlflow.runs[job_of(world.database, job_id).run_id]
    newest = Newest(attempt=1, step=250, values={metric_keys.SAMPLES: 250.0}, images_per_s=50.0)
    run.tags |= {names.TAG_STEPS: "1000", names.TAG_NEWEST: newest.model_dump_json()}
    world.rounds()
    job = served.get(f"/v1/jobs/{job_id}").json()
    assert job["progress"] == {"inspected": 250, "total": 1000, "images_per_s": 50.0, "eta_s": 15.0}
    assert "inspecting the images" in job["message"]
    assert served.get("/v1/jobs", params={"kind": "inspect"}).json()["items"][0]["progress"]["inspected"] == 250
    for page in (f"/jobs/{job_id}/overview", "/jobs", "/"):
        assert served.get(page).status_code in {200, 303}


def test_its_result_is_what_the_attempt_has_stored(served, world):
    result = found()
    job = served.get(f"/v1/jobs/{completed(served, world, result)}").json()
    assert job["result"]["inspection"] == json.loads(result.model_dump_json())
    assert job["message"] == "1,003 images, 2 classes from folders, 1 warning."
    assert (job["kind"], job["name"]) == ("inspect", "inspect-photos")


@pytest.mark.parametrize(
    ("spec", "field", "text"),
    [
        ({"dataset": {"uri": "photos"}}, "dataset.uri", "absolute path"),
        ({"dataset": {"uri": URI}, "sample": 0}, "sample", "greater than or equal to 1"),
        ({"dataset": {"uri": URI}, "resources": {"workers": 2}}, "resources.workers", "must be 1"),
        ({"dataset": {"uri": URI}, "model": {}}, "model", "unknown field"),
        ({"dataset": {"uri": URI, "value_range": [5, 5]}}, "dataset.value_range", "first number must be below"),
        ({"dataset": {"uri": URI, "include": "*.png"}}, "dataset.include", "must be a list"),
        ({}, "dataset", "is required"),
    ],
)
def test_bad_specs_are_refused_by_field(served, spec, field, text):
    found_problems = problem(served.post("/v1/jobs", json={"kind": "inspect"} | spec), 422, "spec_invalid")["problems"]
    assert any(each["field"] == field and text in each["message"] for each in found_problems), found_problems


def test_a_plan_of_an_inspection_has_no_network(served):
    plan = served.post("/v1/jobs/plan", json={"kind": "inspect", "dataset": {"uri": URI}}).json()
    assert (plan["fits"], plan["parameters"], plan["steps"]) == ("now", None, None)
    assert plan["memory_per_worker_bytes"] > 0


# --- plans ------------------------------------------------------------------------------------------------------------


def planned(served: Any, **parts: Any) -> dict[str, Any]:
    answer = served.post("/v1/jobs/plan", json=SPEC | {"dataset": {"uri": URI}} | parts)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def codes(plan: dict[str, Any]) -> list[str]:
    return [each["code"] for each in plan["warnings"]]


def test_plans_warn_of_what_the_inspection_says(served, world):
    assert planned(served)["warnings"] == []
    completed(served, world, found())
    plan = planned(served, model={"in_chans": 1, "img_size": 32, "patch_size": 4})
    assert codes(plan) == ["colour_lost", "splits_together"]
    assert plan["steps"]["train_images"] == 900  # the inspection has counted the images
    assert codes(planned(served, model={"in_chans": 3, "img_size": 32, "patch_size": 4})) == ["splits_together"]
    five = planned(served, model={"in_chans": 5, "img_size": 32, "patch_size": 4})
    assert five["warnings"][0]["message"].startswith("model.in_chans is 5, and 1000 of 1000 readable images cannot")


@pytest.mark.parametrize(
    ("over", "parts", "code"),
    [
        ({"classes": {}, "class_count": 0}, {"evaluation": {"after": [{"name": "knn"}]}}, "after_without_labels"),
        ({"classes": {}, "class_count": 0}, {"evaluation": {"probes": ["linear"]}}, "probes_without_labels"),
        ({"classes": {"a": 9}, "class_count": 1}, {"evaluation": {"probes": ["linear"]}}, "probes_without_labels"),
        ({"classes": {}, "class_count": 0}, {}, None),
        (
            {"channels": {1: 1000}, "fitting_channels": {1: 1000, 3: 1000, 4: 1000, 8: 1000}},
            {"model": {"in_chans": 8, "img_size": 32, "patch_size": 4}},
            None,
        ),
        ({"channels": {2: 1000}, "fitting_channels": {2: 1000}}, {}, "channels_do_not_fit"),
        ({"unreadable": {"x": Unread(count=500, first="a")}}, {}, "too_many_unreadable"),
        ({"fingerprint": None, "inspected": 100}, {"optimization": {"global_batch_size": 5000}}, None),
    ],
)
def test_what_plans_warn_of(served, world, over, parts, code):
    completed(served, world, found(warnings=[], **over))
    parts = {"model": {"in_chans": 3, "img_size": 32, "patch_size": 4}} | parts
    assert codes(planned(served, **parts)) == ([code] if code else [])


def test_an_inspection_counts_for_specs_that_use_the_same_images(served, world):
    completed(served, world, found(), include=["cat/"])
    assert planned(served)["warnings"] == []
    assert planned(served)["steps"] is None
    same = planned(served, dataset={"uri": URI, "include": ["cat/"], "value_range": [0, 99]})
    assert "splits_together" in codes(same)
    assert same["steps"] is not None


def test_an_inspection_says_nothing_of_other_labels_or_another_scale(served, world):
    scale = Warned(code="value_range_chosen", message="0 becomes black and 4095 white")
    completed(served, world, found(classes={}, class_count=0, warnings=[scale]))
    parts = {"model": {"in_chans": 3, "img_size": 32, "patch_size": 4}, "evaluation": {"probes": ["linear"]}}
    assert codes(planned(served, **parts)) == ["probes_without_labels", "value_range_chosen"]
    scaled = planned(served, **parts, dataset={"uri": URI, "value_range": [0, 4095]})
    assert codes(scaled) == ["probes_without_labels"]
    assert codes(planned(served, **parts, dataset={"uri": URI, "label_column": "species"})) == []


def test_a_search_is_warned_of_its_base(served, world):
    completed(served, world, found())
    base = SPEC | {"dataset": {"uri": URI}, "model": {"in_chans": 1, "img_size": 32, "patch_size": 4}}
    base = {name: value for name, value in base.items() if name not in {"labels", "priority", "retry", "register_as"}}
    space = {"optimization.base_lr": {"type": "float", "low": 1e-5, "high": 1e-3}}
    search = {"kind": "search", "base": base, "space": space, "scheduler": {"name": "none"}}
    assert "colour_lost" in codes(served.post("/v1/jobs/plan", json=search).json())


# --- pages and the command line ---------------------------------------------------------------------------------------


def test_its_page_shows_the_result_and_takes_its_settings_over(browsers, database, root):
    (root / "run/images").mkdir(parents=True)
    (root / "run" / names.SAMPLES_PICTURE).write_bytes(b"\x89PNG")
    spec, result = {"kind": "inspect", "dataset": {"uri": URI}}, {"inspection": found().model_dump(mode="json")}
    job_id = add_job(database, "succeeded", spec, owner="alice", artifact_uri=str(root / "run"), result=result)
    page = browsers.alice.get(f"/jobs/{job_id}/overview").text
    for text in (
        "1,003",
        "2 classes from <bdi>folders</bdi>",
        "&lt;b&gt;dog&lt;/b&gt;",
        "3 unreadable",
        "a.HEIC",
        "used together",
    ):
        assert text in page, text
    assert f'src="/v1/jobs/{job_id}/images/samples.png"' in page
    assert browsers.alice.get(f"/v1/jobs/{job_id}/images/samples.png").status_code == 200
    assert f"/jobs/new?inspection={job_id}" in page
    form = browsers.alice.get(f"/jobs/new?inspection={job_id}").text
    assert f'value="{URI}/train"' in form
    assert f'value="{URI}/val"' in form
    assert f"Settings that fit the dataset of job {job_id}." in form


def test_settings_of_a_job_that_inspected_nothing_are_refused(browsers, database):
    answer = browsers.alice.get(f"/jobs/new?inspection={add_job(database, owner='alice')}")
    assert answer.status_code == 409
    assert "has inspected no dataset" in answer.text


def test_the_terminal_shows_the_whole_result(capsys):
    Console(width=200).print(rendered(found(inspected=100)))
    shown = capsys.readouterr().out
    for text in (
        "1,003, of which a sample of 100 was decoded", "1,000 of 100, 2.0 MiB", "JPEG: 900, PNG: 100",
        "20 to 900, half of them 30 to 80, median 64", "2 classes from folders", "cat: 600",
        "3: .heic files cannot be read (first: a.HEIC)", ".txt: 2", "train: 900 in file:///data/photos/train",
        "812 images/s on each core", "! The splits are used together", "in_chans: 3",
    ):  # fmt: skip
        assert text in shown, text
