"""The pages of evaluations: the table, the list, one evaluation, and the form that starts one."""

from __future__ import annotations

import json
import re
from html import unescape
from typing import Any

import pytest
from backbone_files import Registry
from evaluations import TEST, TRAIN, add_evaluation, evaluation, score
from fastapi.testclient import TestClient
from service_fakes import SPEC, add_job, spec_with

from service.auth.sessions import CSRF_HEADER
from service.dashboard.evaluateform import ABOUT, evaluate_form, protocol_models
from service.dashboard.evaluation import classes, figure, headline, rows
from service.dashboard.specform import pruned
from trainer.protocol.evaluation import CorruptionScore, EvaluatedImages, EvaluationPicture, Measured
from trainer.protocol.inspection import Warned
from trainer.spec.base import document_with_lines
from trainer.spec.evaluate import PROTOCOLS
from trainer.spec.job import parse_spec

OTHER = EvaluatedImages(uri="/data/other", title="other", images=500, fingerprint="sha256:other")


@pytest.fixture
def registry(database, mlflow, root) -> Registry:
    return Registry(database, mlflow, root)


def page(browser: TestClient, path: str, status: int = 200, **query: Any) -> str:
    answer = browser.get(path, params=query or None)
    assert answer.status_code == status, answer.text
    return unescape(answer.text)


def csrf(browser: TestClient) -> dict[str, str]:
    return {CSRF_HEADER: re.search(r'name="csrf" content="([^"]+)"', browser.get("/jobs/new").text)[1]}


def cells(text: str, table: str) -> list[list[str]]:
    """The texts of a table's body, without markup."""
    body = re.search(rf'<table id="{table}".*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    assert body, text
    found = re.findall(r"<tr.*?</tr>", body[1], re.DOTALL)
    return [[_plain(each) for each in re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL)] for row in found]


def _plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_marks_the_best_only_where_intervals_part(browsers, database, registry):
    for number, (knn, linear) in enumerate([(0.95, 0.90), (0.80, 0.89)], 1):
        registry.add("digits", number)
        found = evaluation({"eval/knn_top1": knn, "eval/knn_top1_random_init": 0.5, "eval/linear_top1": linear},
                           version=number)  # fmt: skip
        add_evaluation(database, found)
    text = page(browsers.alice, "/evaluations")
    newer, older = cells(text, "evaluations")
    assert newer == ["digits:2", "80.0 % 78.0 to 82.0 % untrained 50.0 %", "89.0 % 87.0 to 91.0 %"]
    assert older == ["digits:1", "95.0 % best 93.0 to 97.0 % untrained 50.0 %", "90.0 % 88.0 to 92.0 %"]
    assert "marked only where its interval lies above all others" in text


def test_a_column_of_other_settings_marks_no_best_and_its_cells_say_which(database, registry, browsers):
    for number, pooling, top1 in ((1, "mean", 0.9), (2, "cls", 0.5)):
        registry.add(number=number)
        add_evaluation(database, evaluation({"eval/knn_top1": top1}, version=number, pooling=pooling))
    text = browsers.alice.get("/evaluations").text
    assert "pooling mean" in text
    assert "pooling cls" in text
    assert '<span class="tag">best</span>' not in text


def test_the_table_groups_columns_by_their_images_and_is_filtered_by_its_address(browsers, database, registry):
    registry.add("digits", 1)
    add_evaluation(database, evaluation({"eval/knn_top1": 0.9, "eval/linear_top1": 0.8}))
    add_evaluation(database, evaluation({"eval/knn_top1": 0.7}, test=OTHER, held_out=None))
    text = page(browsers.alice, "/evaluations")
    assert re.findall(r'colspan="(\d)" class="first-of-group"><bdi>(\w+)', text) == [("2", "digits"), ("1", "other")]
    assert "trained on <bdi>digits</bdi>" in text
    assert cells(page(browsers.alice, "/evaluations", test="other"), "evaluations") == [
        ["digits:1", "70.0 % 68.0 to 72.0 %"]
    ]
    knn = page(browsers.alice, "/evaluations", protocol="knn")
    assert 'title="eval/linear_top1"' not in knn
    assert re.search(r'value="knn"\s+checked', knn)
    assert "No evaluation matches" in page(browsers.alice, "/evaluations", backbone="cats")
    assert "A filter cannot be used." in page(browsers.alice, "/evaluations", backbone="A B")


def test_a_private_backbones_evaluation_is_on_no_page_of_others(browsers, database, registry):
    registry.add("digits", 1, owner="alice")
    body = {"visibility": "owners"}
    assert browsers.alice.patch("/v1/backbones/digits", json=body, headers=csrf(browsers.alice)).status_code == 200
    job = add_evaluation(database, owner="alice")
    assert "digits:1" in page(browsers.alice, "/evaluations")
    for path in ("/evaluations", "/evaluations/list"):
        assert "Nothing has been evaluated yet." in page(browsers.bob, path)
    for path in (f"/evaluations/{job}", f"/evaluations/{job}/classes", f"/jobs/{job}/overview"):
        page(browsers.bob, path, 404)


# --- the list ---------------------------------------------------------------------------------------------------------


@pytest.mark.both_databases
def test_the_list_is_sorted_by_a_score_and_paged(browsers, database, registry):
    registry.add("digits", 1)
    for number in range(52):
        add_evaluation(database, evaluation({"eval/linear_top1": 0.4 + number / 100}), name=f"run-{number:02}")
    text = page(browsers.alice, "/evaluations/list", sort="-eval/linear_top1")
    assert [row[0] for row in cells(text, "evaluations")][:2] == ["run-51", "run-50"]
    assert 'aria-sort="descending"' in text
    following = re.search(r'href="([^"]*)" data-swap rel="next"', text)
    assert following
    assert [row[0] for row in cells(page(browsers.alice, following[1]), "evaluations")] == ["run-01", "run-00"]
    page(browsers.alice, "/evaluations/list", 422, sort="eval/nonsense_top1")


# --- one --------------------------------------------------------------------------------------------------------------


def rich(**fields: Any) -> Any:
    """An evaluation with something in each section of its page."""
    seeds = [
        Measured(seed=number, top1=0.8 + number / 50, top5=0.99, correct=290, train_images=1437,
                 details={"strength": 0.1, "converged": number != 1})
        for number in range(3)
    ]  # fmt: skip
    fields_of_linear = {"seeds": seeds, "seeds_interval": (0.77, 0.87), "settings": {"solver": "lbfgs"}}
    linear = score("eval/linear_top1", 0.82, 0.01, **fields_of_linear,
                   per_class=[number / 10 for number in range(9)] + [None])  # fmt: skip
    corrupted = [
        CorruptionScore(corruption=name, severity=severity, top1=0.9 - severity / 10, weights=weights)
        for name in ("gaussian_noise", "jpeg_compression")
        for severity in range(1, 6)
        for weights in ("backbone", "random")
    ]
    values: dict[str, Any] = {
        "scores": [
            linear,
            score("eval/linear_top1_random_init", 0.5),
            score("eval/finetune_top1", 0.9),
            score("eval/finetune_top1_scratch", 0.895),
        ],
        "corruptions": corrupted,
        "mce": 0.4,
        "pictures": [EvaluationPicture(file="evaluation/attention.png", title="Attention", caption="Where it looks.")],
        "notices": [Warned(code="few", message="only <b>few</b> images")],
    }
    return evaluation(**values | fields)


def test_the_page_of_an_evaluation_shows_all_that_it_has_found(browsers, database, registry):
    registry.add("digits", 1)
    job = add_evaluation(database, rich())
    raw = browsers.alice.get(f"/jobs/{job}/overview").text
    text = unescape(raw)
    linear, finetune = cells(text, "scores")
    assert linear[:4] == ["linear", "82.0 %", "77.0 to 87.0 % over seeds", "99.0 %"]
    assert linear[4] == "untrained 50.0 % (48.0 to 52.0 %) backbone better"
    assert "did not converge for seed 1" in linear[5]
    assert "strength 0.1" in linear[5]
    assert finetune[4] == "from scratch 89.5 % (87.5 to 91.5 %) no clear difference"
    assert cells(text, "corruptions")[1] == [
        "JPEG compression", "80.0 %", "70.0 %", "60.0 %", "50.0 %", "40.0 %", "60.0 %", "60.0 %"
    ]  # fmt: skip
    assert "Mean corruption error <strong>40.0 %" in text
    assert cells(text, "classes")[0] == ["0", "0.0 %", "90.0 %"]
    assert f'src="/v1/jobs/{job}/files/evaluation/attention.png"' in text
    assert "Where it looks." in text
    assert "only &lt;b&gt;few&lt;/b&gt; images" in raw
    assert '<a href="/backbones/digits?version=1">' in text
    assert "20% of each class, held out" in text


def test_the_chart_has_error_bars_for_each_set_of_weights(database):
    del database
    backbone, random, scratch = figure(rich())["data"]
    assert backbone["x"] == ["linear", "fine-tuning"]
    assert backbone["y"] == pytest.approx([82, 90])
    assert backbone["error_y"]["array"] == pytest.approx([5, 2])
    assert (random["x"], scratch["x"]) == (["linear"], ["fine-tuning"])


def test_classes_are_sorted_with_the_worst_first_and_unknown_ones_last(browsers, database, registry):
    registry.add("digits", 1)
    job = add_evaluation(database, rich())
    first = cells(page(browsers.alice, f"/evaluations/{job}/classes"), "classes")
    assert [row[0] for row in first] == [str(number) for number in range(10)]
    assert first[-1][1] == "–"
    best = cells(page(browsers.alice, f"/evaluations/{job}/classes", sort="-eval/linear_top1"), "classes")
    assert [row[0] for row in best] == [*(str(number) for number in range(8, -1, -1)), "9"]
    assert next(row.name for row in classes(rich(), "-class")) == "9"
    page(browsers.alice, f"/evaluations/{job}/classes", 422, sort="nonsense")


def test_a_score_of_one_seed_has_the_interval_of_the_test_set(database):
    del database
    (row,) = rows(evaluation({"eval/knn_top1": 0.9}))
    assert (row.interval.of, row.interval.low, row.interval.high) == ("test", pytest.approx(0.88), pytest.approx(0.92))


def test_who_does_not_see_the_job_sees_the_scores_without_pictures(browsers, database, registry):
    registry.add("digits", 1)
    job = add_evaluation(database, rich(), owner="alice")
    assert browsers.alice.get(f"/evaluations/{job}").headers["Location"] == f"/jobs/{job}/overview"
    page(browsers.bob, f"/jobs/{job}/overview", 404)
    text = page(browsers.bob, f"/evaluations/{job}")
    assert "82.0 %" in text
    assert "attention.png" not in text
    assert "Its pictures are for those who may see its job." in text


def test_a_running_evaluation_says_what_it_measures_and_what_it_has(browsers, database):
    progress = {"done": 3, "total": 8, "measuring": "linear, seed 1", "scores": {"eval/knn_top1": 0.875}, "eta_s": 60.0,
                "gpu_hours": 0.0, "warnings": [{"code": "few", "message": "few images"}]}  # fmt: skip
    spec = {"kind": "evaluate", "backbone": "digits:1", "dataset": {"uri": "builtin://digits"}}
    job = add_job(database, "running", spec, progress=progress)
    text = page(browsers.alice, f"/jobs/{job}/overview")
    for shown in ("3/8 measurements", "measuring <bdi>linear, seed 1", "few images", "1 m 00 s left"):
        assert shown in text, shown
    assert cells(text, "so-far") == [["k-NN", "87.5 %"]]
    for path in ("/", "/jobs"):
        assert "3/8 measurements" in page(browsers.alice, path), path
    assert "k-NN 87.5 %" in _plain(page(browsers.alice, "/jobs"))


def test_an_evaluation_that_trains_has_curves_of_its_first_seeds_by_protocol(browsers, database):
    spec = {"kind": "evaluate", "backbone": "digits:1", "dataset": {"uri": "builtin://digits"}, "seed": 7, "seeds": 5,
            "protocols": [{"name": "knn"}, {"name": "finetune"}]}  # fmt: skip
    job = add_job(database, "running", spec, run_id="run")
    text = page(browsers.alice, f"/jobs/{job}/metrics")
    charts = json.loads(re.search(r'data-charts="(\[.*?\])" data-axes="step time"', text)[1])
    assert charts[0]["title"] == "Loss: fine-tuning"
    assert charts[0]["keys"] == [
        f"train/loss/finetune-{weights}-{seed}" for weights in ("backbone", "scratch") for seed in (7, 8, 9)
    ]
    assert len(charts) == 5
    assert "The trainings of the first 3 seeds" in text
    assert "Loss: fine-tuning" in page(browsers.alice, f"/jobs/{job}/overview")
    frozen = add_job(database, "running", spec | {"protocols": [{"name": "knn"}]}, run_id="other")
    assert f"/jobs/{frozen}/metrics" not in page(browsers.alice, f"/jobs/{frozen}/overview")
    page(browsers.alice, f"/jobs/{frozen}/metrics", 404)


def test_lists_of_jobs_show_the_first_scores_of_an_evaluation(browsers, database):
    spec = {"kind": "evaluate", "backbone": "digits:1", "dataset": {"uri": "builtin://digits"}}
    metrics = {"eval/knn_top1_random_init": 0.5, "eval/knn_top1": 0.75, "eval/linear_top1_1pct": 0.25, "eval/mce": 0.5}
    add_job(database, "succeeded", spec, result={"metrics": metrics})
    assert headline(metrics) == [("k-NN", 0.75), ("linear, 1 % of labels", 0.25)]
    assert "k-NN 75.0 % linear, 1 % of labels 25.0 %" in _plain(page(browsers.alice, "/"))
    assert "k-NN 75.0 % · linear, 1 % of labels 25.0 %" in _plain(page(browsers.alice, "/jobs"))


# --- a backbone -------------------------------------------------------------------------------------------------------


def test_a_backbones_page_shows_what_evaluations_have_found_of_the_version(browsers, database, registry):
    registry.add("digits", 1)
    registry.add("digits", 2)
    job = add_evaluation(database, evaluation({"eval/knn_top1": 0.9, "eval/knn_top1_random_init": 0.7}))
    add_evaluation(database, evaluation({"eval/knn_top1": 0.6}, test=OTHER, held_out=None))
    text = page(browsers.alice, "/backbones/digits", version="1")
    first, second = cells(text, "evaluations")
    assert first[:6] == [
        f"digits {TEST.images} test images 20% held out",
        "k-NN",
        "90.0 %",
        "88.0 to 92.0 %",
        "untrained 70.0 %",
        job,
    ]
    assert second[0] == f"other {OTHER.images} test images trained on {TRAIN.title}"
    assert "/evaluations?backbone=digits" in text
    assert "/evaluations/new?backbone=digits%3A1" in text
    assert "It has not been evaluated since" in page(browsers.alice, "/backbones/digits", version="2")


def test_two_versions_are_compared_by_their_evaluations(browsers, database, registry):
    for number, knn, linear in ((1, 0.9, 0.8), (2, 0.95, 0.81)):
        registry.add("digits", number)
        found = evaluation({"eval/knn_top1": knn, "eval/linear_top1": linear}, version=number)
        add_evaluation(database, found)
    add_evaluation(database, evaluation({"eval/attentive_top1": 0.9}))
    add_evaluation(database, evaluation({"eval/attentive_top1": 0.5}, version=2, pooling="cls"))
    text = page(browsers.alice, "/backbone-comparison", of="digits:1", **{"with": "digits:2"})
    assert [row[1:] for row in cells(text, "compared-evaluations")] == [
        ["k-NN", "90.0 % 88.0 to 92.0 %", "95.0 % 93.0 to 97.0 %", "the second is better"],
        ["linear", "80.0 % 78.0 to 82.0 %", "81.0 % 79.0 to 83.0 %", "no clear difference"],
        ["attentive probe", "90.0 % 88.0 to 92.0 %", "50.0 % 48.0 to 52.0 %", "differ in pooling"],
    ]


# --- the form ---------------------------------------------------------------------------------------------------------


def document_of(text: str) -> dict[str, Any]:
    """The spec that a form is filled with."""
    yaml = re.search(r'<textarea id="yaml"[^>]*>(.*?)</textarea>', text, re.DOTALL)
    assert yaml
    return document_with_lines(yaml[1])[0]


def test_each_protocol_is_offered_with_what_it_says_and_costs():
    assert set(protocol_models()) == set(PROTOCOLS) <= set(ABOUT)
    form = evaluate_form({})
    assert [each.name for each in form.protocols if each.chosen] == ["knn", "linear"]
    assert all(each.about and each.cost for each in form.protocols)


def test_a_form_starts_with_the_images_of_a_training_that_had_labels(browsers, database, registry):
    other = {"evaluation": {"dataset": {"uri": "/data/val"}}}
    job = add_job(database, "succeeded", spec_with(register_as="digits", **other), progress={
        "epoch": 1, "epochs": 1, "step": 1, "labels": "10 classes from folders, 9 of 9 images labelled"})  # fmt: skip
    document = document_of(page(browsers.alice, "/evaluations/new", job=job))
    assert document == {
        "kind": "evaluate", "backbone": {"job": job}, "dataset": {"uri": SPEC["dataset"]["uri"]},
        "test": {"uri": "file:///data/val"},
    }  # fmt: skip
    parse_spec(document)
    unlabelled = add_job(database, "succeeded", progress={"epoch": 1, "epochs": 1, "step": 1, "labels": "no labels"})
    text = page(browsers.alice, "/evaluations/new", job=unlabelled, checkpoint="checkpoints/a1/00000100")
    assert document_of(text) == {
        "kind": "evaluate", "backbone": {"job": unlabelled, "checkpoint": "checkpoints/a1/00000100"}
    }  # fmt: skip
    assert "Enter the URI of labelled images." in text
    registry.jobs["digits"] = job
    registry.add("digits", 1)
    found = document_of(page(browsers.alice, "/evaluations/new", backbone="digits"))
    assert (found["backbone"], found["dataset"]) == ("digits:1", {"uri": SPEC["dataset"]["uri"]})


def test_features_of_images_have_a_form_too(browsers, database, registry):
    registry.add("digits", 1)
    text = page(browsers.alice, "/embeddings/new", backbone="digits")
    document = document_of(text)
    assert (document["kind"], document["backbone"]) == ("embed", "digits:1")
    parse_spec(document)  # with the images of its training
    spec = parse_spec({
        "kind": "embed", "backbone": {"job": "job-1"}, "dataset": {"uri": "/data/x"}, "dtype": "float16",
    })  # fmt: skip
    job = add_job(database, "succeeded", spec.model_dump(mode="json"))
    text = page(browsers.alice, "/embeddings/new", like=job)
    assert parse_spec(document_of(text)) == spec
    assert 'value="job-1"' in text
    assert f"/embeddings/new?like={job}" in page(browsers.alice, f"/jobs/{job}/overview")


def test_a_form_is_refused_for_what_cannot_be_evaluated(browsers, database):
    spec = {"kind": "evaluate", "backbone": "digits:1", "dataset": {"uri": "builtin://digits"}}
    evaluated = add_job(database, "succeeded", spec)
    assert "choose one of kind pretrain" in page(browsers.alice, "/evaluations/new", 409, job=evaluated)
    assert "choose one of kind evaluate" in page(browsers.alice, "/evaluations/new", 409, like=add_job(database))
    page(browsers.alice, "/evaluations/new", 404, backbone="nowhere")
    assert "write NAME" in page(browsers.alice, "/evaluations/new", 422, backbone="A B")


def test_the_form_and_yaml_of_an_evaluation_mean_the_same(browsers, database):
    spec = parse_spec({
        "kind": "evaluate", "backbone": {"job": "job-1", "network": "student"}, "dataset": {"uri": "/data/train"},
        "test": {"uri": "/data/test", "label_column": "species"}, "seeds": 5, "baselines": ["random"],
        "protocols": [{"name": "linear"}, {"name": "robustness", "severities": [1, 5]}],
    })  # fmt: skip
    short = pruned("evaluate", spec.model_dump(mode="json"))
    assert parse_spec(short) == spec
    text = page(browsers.alice, "/evaluations/new", like=add_job(database, "succeeded", spec.model_dump(mode="json")))
    assert parse_spec(document_of(text)) == spec
    form = evaluate_form(short)
    assert (form.subject.shape, form.subject.network.value, form.seeds.value) == ("checkpoint", "student", "5")
    assert [each.value for each in form.images] == ["file:///data/train", "file:///data/test", ""]
    assert {each.name for each in form.protocols if each.chosen} == {"linear", "robustness"}
    assert [each.value for each in form.protocols[-1].fields if each.path.endswith("severities")] == ["[1, 5]"]
    assert [name for name, (_, chosen) in form.baselines.items() if chosen] == ["random"]


@pytest.mark.parametrize("document", [{}, {"protocols": "x", "backbone": 3, "baselines": 7, "dataset": 3}])
def test_yaml_that_is_no_evaluation_yet_has_a_form_all_the_same(browsers, document):
    headers = csrf(browsers.alice)
    text = browsers.alice.post("/forms/yaml", json={"document": document}, headers=headers).json()["text"]
    answer = browsers.alice.post("/forms/form", json={"kind": "evaluate", "text": text}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert 'data-protocol="knn"' in answer.json()["html"]
