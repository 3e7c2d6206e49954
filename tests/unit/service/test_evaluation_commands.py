"""The client and the command line submit evaluations and show what they have found."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from backbone_files import Registry
from command_line import rcmae
from conftest import token_of
from evaluations import FINISHED, TEST, add_evaluation, evaluation
from scripted_server import Answer, ScriptedServer
from scripted_server import job as scripted_job

from service.client.errors import ApiError
from service.client.evaluation_calls import evaluate_spec
from service.client.sdk import Client
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.job import parse_spec

JOB = "job-e2k4y0h5c7m9xq"


@pytest.fixture
def measured(address: str, database, mlflow, root) -> list[str]:  # noqa: ARG001 - the service answers there
    """The service with two versions of digits, and the jobs of their evaluations."""
    registry = Registry(database, mlflow, root)
    registry.add(number=1)
    registry.add(number=2)
    first = add_evaluation(database)
    better = evaluation({"eval/knn_top1": 0.97, "eval/knn_top1_random_init": 0.7}, version=2)
    return [first, add_evaluation(database, better, finished_at=FINISHED + timedelta(hours=1))]


def test_evaluations_are_listed_shown_and_compared(measured, database, capsys):
    first, second = measured
    status, said, _ = rcmae(capsys, "evaluations", "list", "--sort", "eval/knn_top1")
    assert status == 0
    assert [line.split()[:4] for line in said.splitlines()[1:]] == [
        [first, "digits:1", "digits", "knn_top1"],
        [second, "digits:2", "digits", "knn_top1"],
    ]
    listed = json.loads(rcmae(capsys, "evaluations", "list", "--backbone", "digits:2", "--json")[1])
    assert [each["job"] for each in listed] == [second]
    _, said, _ = rcmae(capsys, "evaluations", "show", first)
    assert "eval/knn_top1_random_init  0.7000  -           0.6800 to 0.7200" in said
    assert json.loads(rcmae(capsys, "evaluations", "show", first, "--json")[1])["evaluation"]["scores"][0]["per_class"]
    _, said, _ = rcmae(capsys, "evaluations", "table", "--protocol", "knn")
    heading, _, best, other, *_ = said.splitlines()
    assert heading == "eval/knn_top1 on digits (360 images), 0.2 of each class held out"
    assert best.split() == [
        "digits:2",
        "0.9700",
        "0.9500",
        "to",
        "0.9900",
        "(test)",
        "random",
        "0.7000",
        second,
        "best",
    ]
    assert other.split()[-1] == first
    assert json.loads(rcmae(capsys, "evaluations", "table", "--json")[1])["left_out"] == 0
    other_test = TEST.model_copy(update={"title": "other", "fingerprint": "sha256:other"})
    add_evaluation(database, evaluation({"eval/linear_top1": 0.5}, test=other_test, held_out=None))
    heading = rcmae(capsys, "evaluations", "table", "--protocol", "linear")[1].splitlines()[0]
    assert heading == "eval/linear_top1 on other (360 images), trained on digits (1,437 images)"
    assert rcmae(capsys, "evaluations", "table", "--backbone", "none")[1] == "no evaluation matches\n"
    status, _, told = rcmae(capsys, "evaluations", "list", "--sort", "eval/kn_top1")
    assert (status, "eval/knn_top1" in told) == (2, True)


def test_the_client_reads_evaluations_over_pages(measured, address):
    with Client(address, token_of("alice")) as client:
        assert [each.job for each in client.evaluations(page_size=1)] == measured[::-1]
        assert client.evaluation(measured[0]).evaluation.score("eval/knn_top1").top1 == 0.9
        table = client.evaluation_table(backbone="digits@none")
        assert (table.columns, table.rows) == ([], [])
        with pytest.raises(ApiError, match="there is no evaluation"):
            client.evaluation("job-none")


@pytest.mark.parametrize(
    ("text", "backbone"),
    [
        ("digits:3", "digits:3"),
        ("digits@champion", "digits@champion"),
        (JOB, {"job": JOB}),
        (f"{JOB}:a1/00000100", {"job": JOB, "checkpoint": "checkpoints/a1/00000100"}),
        (f"{JOB}:checkpoints/a1/00000100", {"job": JOB, "checkpoint": "checkpoints/a1/00000100"}),
        ("s3://models/vit", {"uri": "s3://models/vit"}),
        ("weights/vit.pth", {"uri": str(Path("weights/vit.pth").absolute())}),
    ],
)
def test_a_subject_becomes_a_spec_that_the_service_takes(server: ScriptedServer, capsys, text, backbone):
    server.on("POST", "/v1/jobs", Answer(201, scripted_job(kind="evaluate")))
    arguments = (
        "--dataset",
        "builtin://digits",
        "--test",
        "s3://data/test",
        "--protocol",
        "knn",
        "--protocol",
        "linear",
    )
    status, said, _ = rcmae(capsys, "evaluate", text, *arguments, "--seeds", 2, "--pooling", "cls", "--set", "seed=7")
    assert (status, said.splitlines()[-1]) == (0, "its scores:     rcmae evaluations show job-1")
    sent = server.asked[-1].body
    spec = parse_spec(sent)
    assert isinstance(spec, EvaluateSpec)
    assert sent["backbone"] == backbone
    assert ([each.name for each in spec.protocols], spec.seeds, spec.seed) == (["knn", "linear"], 2, 7)
    assert (spec.features.pooling, spec.test.uri) == ("cls", "s3://data/test")


def test_the_client_evaluates_with_settings_of_a_protocol(server: ScriptedServer):
    server.on("POST", "/v1/jobs", Answer(201, scripted_job(kind="evaluate")))
    with Client(server.url, "secret") as client:
        client.evaluate("digits", "builtin://digits", protocols=[{"name": "knn", "k": [5]}], baselines=[], priority=3)
    spec = parse_spec(server.asked[0].body)
    assert isinstance(spec, EvaluateSpec)
    assert (spec.protocols[0].k, spec.baselines, spec.priority) == ((5,), (), 3)
    assert server.asked[0].headers["idempotency-key"]


@pytest.mark.parametrize(
    ("protocols", "meant"),
    [
        (None, [{"name": "finetune", "pooling": "cls", "register_as": "cats"}]),
        (["knn"], [{"name": "knn"}, {"name": "finetune", "pooling": "cls", "register_as": "cats"}]),
        (
            [{"name": "finetune", "pooling": "mean", "recipe": "small"}],
            [{"name": "finetune", "pooling": "mean", "recipe": "small", "register_as": "cats"}],
        ),
    ],
)
def test_a_name_to_register_under_asks_for_a_fine_tuned_classifier(protocols, meant):
    assert evaluate_spec("digits", "builtin://digits", protocols=protocols, register_as="cats")["protocols"] == meant
