"""Jobs that import weights from elsewhere: submission, progress, and the versions that they leave."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from backbone_files import FILES, Registry, write
from conftest import token_of
from fastapi.testclient import TestClient
from scripted_server import Answer, job
from service_fakes import job_of, problem
from service_world import World

from service.app import attach
from service.backbones.schemas import VersionView
from service.cli import main
from service.client import render_progress
from service.client.console import Console
from service.client.render_backbones import summary
from service.jobs.schemas import JobView
from trainer.protocol import names
from trainer.protocol.outcome import Outcome
from trainer.protocol.progress import Activity

ORIGIN = {"name": "facebook/vit-mae-base", "url": "https://huggingface.co/facebook/vit-mae-base"}
SPEC: dict[str, Any] = {
    "kind": "import", "source": {"uri": "s3://models/vit-mae-base"}, "register_as": "vit-b", "origin": ORIGIN,
    "license": "apache-2.0",
}  # fmt: skip
TAGS = {
    "rcmae.method": "imported", "rcmae.origin": ORIGIN["name"], "rcmae.origin_url": ORIGIN["url"],
    "rcmae.license": "apache-2.0", "rcmae.formats": "timm,hf,hf-mae", "rcmae.source_format": "vit_mae",
}  # fmt: skip


def run(*arguments: str) -> int:
    """The exit status of the console script."""
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return int(ended.value.code or 0)


def submitted(served: Any, **parts: Any) -> str:
    answer = served.post("/v1/jobs", json=SPEC | parts)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def started(served: Any, world: World) -> str:
    job_id = submitted(served)
    world.rounds()
    world.run_attempt(job_id)
    return job_id


def completed(served: Any, world: World, root: Path, files: dict[str, bytes] | None = None) -> str:
    """An import that has registered its version."""
    job_id = started(served, world)
    world.mlflow.register("vit-b", 1, job_id, write(root / "m-1", files or FILES), TAGS)
    world.end_attempt(job_id, Outcome(state="succeeded"))
    world.rounds()
    assert world.state(job_id) == "succeeded"
    return job_id


# --- submission -------------------------------------------------------------------------------------------------------


def test_an_import_is_a_job_of_one_small_worker(served, world, ray):
    found = served.get(f"/v1/jobs/{submitted(served)}").json()
    assert (found["kind"], found["name"], found["spec"]["source"]["uri"]) == (
        "import", "import-vit-b", "s3://models/vit-mae-base",
    )  # fmt: skip
    world.rounds()
    (request,) = ray.requests
    assert request.spec.model_dump(mode="json") == found["spec"]
    assert request.source is None
    held = served.get("/v1/cluster").json()["running"]
    assert [(each["workers"], each["cpus"], each["gpus"]) for each in held] == [(1, 1, 0)]
    plan = served.post("/v1/jobs/plan", json=SPEC).json()
    assert (plan["parameters"], plan["steps"], plan["gang"]) == (None, None, {"cpus": 1, "gpus": 0})
    assert plan["memory_per_worker_bytes"] > 0


@pytest.mark.parametrize(
    ("parts", "field", "text"),
    [
        ({"license": None}, "license", "must be a valid string"),
        ({"license": "other"}, "license_link", "is needed for the licence other"),
        ({"license": "two words"}, "license", "without spaces"),
        ({"source": {"uri": "vit-mae"}}, "source.uri", "for example /data/models/vit"),
        ({"source": {"uri": "https://huggingface.co/x/y"}}, "source.uri", "must first be copied to where the workers"),
        ({"source": {"uri": "/data/*.pth"}}, "source.uri", "patterns do not work"),
        ({"source": {"uri": "/data/../etc"}}, "source.uri", "without .."),
        ({"source": {"uri": "s3://key:secret@models/x"}}, "source.uri", "must not hold credentials"),
        ({"origin": {}}, "origin.name", "is required"),
        ({"origin": {"name": " padded"}}, "origin.name", "one line"),
        ({"origin": ORIGIN | {"url": "javascript:alert(1)"}}, "origin.url", "https:// address"),
        ({"origin": ORIGIN | {"citation": "```\n# Mine"}}, "origin.citation", "the model card quotes it"),
        ({"register_as": "x-timm"}, "register_as", "must not end in"),
        ({"export": {"formats": ["pth"]}}, "export.formats.0", "must be"),
        ({"resources": {"gpus_per_worker": 1}}, "resources.gpus_per_worker", "must be 0"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_field_and_what_to_do(served, parts, field, text):
    for path in ("/v1/jobs", "/v1/jobs/plan"):
        found = problem(served.post(path, json=SPEC | parts), 422, "spec_invalid")["problems"]
        assert [each["field"] for each in found] == [field], found
        assert text in found[0]["message"]


def test_a_licence_must_be_named(served):
    spec = {name: value for name, value in SPEC.items() if name != "license"}
    found = problem(served.post("/v1/jobs", json=spec), 422, "spec_invalid")["problems"]
    assert [(each["field"], each["message"]) for each in found] == [("license", "is required: add it to the spec")]
    link = "https://acme.example/licence"
    for parts in ({"license": "unknown"}, {"license": "other", "license_link": link}):
        assert served.post("/v1/jobs", json=SPEC | parts).status_code == 201


def test_weights_must_be_where_the_settings_allow_datasets(routes, settings, database, ray, mlflow):
    roots = ("/data", "s3://models/free")
    narrow = World(settings.model_copy(update={"dataset_roots": roots}), database, ray, mlflow)
    attach(routes, narrow.app_state, None)
    client = TestClient(routes, headers={"Authorization": f"Bearer {token_of('alice')}"})
    for uri in ("s3://models/vit-mae-base", "file:///home/alice/vit", "s3://models/freebies"):
        for path in ("/v1/jobs", "/v1/jobs/plan"):
            refused = problem(client.post(path, json=SPEC | {"source": {"uri": uri}}), 422, "spec_invalid")
            (told,) = refused["problems"]
            assert (told["field"], told["value"]) == ("source.uri", uri)
            assert "one of the locations that jobs may read: /data, s3://models/free" in told["message"]
    assert client.post("/v1/jobs", json=SPEC | {"source": {"uri": "s3://models/free/vit"}}).status_code == 201
    narrow.rounds()
    assert [request.dataset_roots for request in ray.requests] == [roots]


def test_a_citation_may_have_lines(served):
    citation = "@misc{x,\n\ttitle = {y}\n}"
    job_id = submitted(served, origin=ORIGIN | {"citation": citation})
    assert served.get(f"/v1/jobs/{job_id}").json()["spec"]["origin"]["citation"] == citation


# --- its life ---------------------------------------------------------------------------------------------------------


def test_its_progress_is_the_phase_that_its_heartbeat_tells(served, world):
    job_id = started(served, world)
    run = world.mlflow.runs[job_of(world.database, job_id).run_id]
    assert "importing the weights" in served.get(f"/v1/jobs/{job_id}").json()["message"]
    for done, phase in enumerate(("reading", "checking", "writing", "registering")):
        run.tags[names.TAG_ACTIVITY] = Activity(attempt=1, phase=phase, step=0, unchanged_s=1.0).model_dump_json()
        world.rounds()
        answer = served.get(f"/v1/jobs/{job_id}")
        assert answer.json()["progress"] == {"phase": phase, "done": done, "phases": 4}
        view = JobView.model_validate_json(answer.text)
        assert (render_progress.line(view), render_progress.done(view)) == (phase, phase)
        assert render_progress.share_done(view.progress) == done / 4


def test_what_to_do_when_it_runs_out_of_memory_is_something_that_its_spec_has(served, world):
    job_id = started(served, world)
    world.end_attempt(job_id, Outcome(state="failed", reason="out_of_memory", message="Out."), ray="FAILED")
    world.rounds()
    message = served.get(f"/v1/jobs/{job_id}").json()["message"]
    assert message.startswith("Out. Use nodes with more memory, or leave onnx out of export.formats. Trying again")


def test_its_version_says_who_made_it_wherever_people_look(served, world, root, browsers):
    job_id = completed(served, world, root)
    found = served.get(f"/v1/jobs/{job_id}").json()
    assert (found["progress"]["done"], found["result"]["backbones"]) == (4, [{"name": "vit-b", "version": 1}])
    assert found["message"] == "The backbone is registered."
    version = served.get("/v1/backbones/vit-b/versions/1").json()
    assert {key: version[key] for key in ("method", "origin", "origin_url", "license", "job_id", "trained_by")} == {
        "method": "imported", "origin": ORIGIN["name"], "origin_url": ORIGIN["url"], "license": "apache-2.0",
        "job_id": job_id, "trained_by": job_id,
    }  # fmt: skip
    for query in ({"method": "imported"}, {"search": "facebook VIT-MAE"}, {"job": job_id}):
        assert [each["name"] for each in served.get("/v1/backbones", params=query).json()["items"]] == ["vit-b"], query
    assert served.get("/v1/backbones", params={"method": "rc_mae"}).json()["items"] == []
    console = Console(width=200)
    with console.capture() as capture:
        console.print(summary(VersionView(**version)))
    assert f"{ORIGIN['name']} {ORIGIN['url']}" in capture.get()
    page = unescape(browsers.alice.get("/backbones/vit-b").text)
    assert f'href="{ORIGIN["url"]}"' in page
    assert "Imported by" in page
    assert "It has not been evaluated here." in page
    for path in (f"/jobs/{job_id}/overview", "/jobs", f"/jobs/{job_id}/spec", "/backbones?method=imported"):
        answer = browsers.alice.get(path)
        assert answer.status_code == 200, path
    overview = browsers.alice.get(f"/jobs/{job_id}/overview").text
    for shown in ("imported</span>", "s3://models/vit-mae-base", f'<a href="{ORIGIN["url"]}"'):
        assert shown in overview, shown
    tags = served.get("/hf/api/models/rcmae/vit-b").json()["tags"]
    assert "imported" in tags
    assert "rc_mae" not in tags


def test_an_address_in_mlflow_that_is_no_web_address_is_no_link(served, database, mlflow, root, browsers):
    Registry(database, mlflow, root).add("odd", origin="x", origin_url="javascript:alert(1)", method="imported")
    page = browsers.alice.get("/backbones/odd").text
    assert 'href="javascript' not in page
    assert served.get("/v1/backbones/odd/versions/1").json()["origin"] == "x"


def test_an_imported_version_is_compared_with_one_that_was_trained_here(served, world, root, database, mlflow):
    metrics = {"step": None, "epochs": None, "curves": {}, "evaluation": {"step": None, "values": {}}}
    theirs = {"origin": ORIGIN, "model": {"depth": 12}, "method": {"name": "imported"}}
    files = FILES | {"spec.json": json.dumps(theirs).encode(), "metrics.json": json.dumps(metrics).encode()}
    completed(served, world, root, files)
    ours = {"dataset": {"uri": "/d"}, "model": {"depth": 12}, "method": {"name": "rc_mae"}}
    Registry(database, mlflow, root).add(
        files=FILES | {"spec.json": json.dumps(ours).encode()}, metrics={"eval/linear_top1": 0.5}, method="rc_mae"
    )
    found = served.get("/v1/backbone-comparison", params={"of": "vit-b", "with": "digits"}).json()
    assert [(each["path"], each["first"], each["second"]) for each in found["spec"]] == [
        ("origin.name", ORIGIN["name"], None), ("origin.url", ORIGIN["url"], None),
        ("method.name", "imported", "rc_mae"), ("dataset.uri", None, "/d"),
    ]  # fmt: skip
    assert found["metrics"] == [{"key": "eval/linear_top1", "first": None, "second": 0.5, "difference": None}]
    assert (found["same_dataset"], found["first"]["notes"]) == (None, [])


def test_it_is_cancelled_retried_and_deleted_like_any_job(served, world, root, mlflow):
    job_id = submitted(served)
    assert served.post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    assert "Retry the job to read the weights again" in served.get(f"/v1/jobs/{job_id}").json()["message"]
    assert served.post(f"/v1/jobs/{job_id}/retry").json()["state"] == "queued"
    world.rounds()
    world.run_attempt(job_id)
    world.end_attempt(job_id, None, ray="FAILED")  # its worker was killed
    world.rounds()
    assert world.state(job_id) == "recovering"
    assert served.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    other = completed(served, world, root)
    problem(served.delete(f"/v1/jobs/{other}"), 409, "backbones_would_go")
    assert served.delete(f"/v1/jobs/{other}?with_backbones=true").status_code == 200
    world.rounds()
    assert mlflow.registered == []


# --- the page and the command line ------------------------------------------------------------------------------------


def test_the_page_offers_an_import_to_those_who_may_submit_one(browsers):
    page = browsers.alice.get("/backbones").text
    form = page[page.index('id="import"') :]
    for name in (
        "source.uri", "register_as", "origin.name", "origin.url", "origin.trained_on", "license", "origin.paper",
        "origin.citation", "export.network", "export.formats", "source.num_heads", "source.decoder_num_heads",
    ):  # fmt: skip
        assert f'name="{name}"' in form, name
    assert 'value="import"' in form


def test_the_command_submits_what_was_said(server, capsys, tmp_path, monkeypatch):
    server.on("POST", "/v1/jobs", Answer(201, job(id="job-9")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cite.bib").write_text("@misc{x}\n")
    least = ("--as", "vit-b", "--license", "unknown", "--origin", "somebody's")
    assert run("backbones", "import", "weights/vit", *least) == 0
    assert "rcmae jobs wait job-9" in capsys.readouterr().out
    more = (
        "--license-link", "https://a.example/l", "--origin-url", "https://a.example", "--trained-on", "ImageNet-1k",
        "--paper", "https://a.example/p", "--citation", "cite.bib", "--network", "teacher", "--format", "timm",
        "--num-heads", "6", "--decoder-num-heads", "8",
    )  # fmt: skip
    assert run("backbones", "import", "s3://models/mae.pth", *least, *more) == 0
    plain = {"kind": "import", "register_as": "vit-b", "license": "unknown"}
    assert [asked.body for asked in server.asked] == [
        plain | {"source": {"uri": str(tmp_path / "weights/vit")}, "origin": {"name": "somebody's"}, "export": {}},
        plain | {
            "source": {"uri": "s3://models/mae.pth", "num_heads": 6, "decoder_num_heads": 8},
            "license_link": "https://a.example/l",
            "origin": {
                "name": "somebody's", "url": "https://a.example", "trained_on": "ImageNet-1k",
                "paper": "https://a.example/p", "citation": "@misc{x}\n",
            },
            "export": {"network": "teacher", "formats": ["timm"]},
        },
    ]  # fmt: skip
