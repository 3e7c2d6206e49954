"""What the demo counts as failed, and what it shows."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from scripted_server import job

from service.embedded import demo
from service.jobs.schemas import JobView
from trainer.spec.job import parse_spec

GOOD = {"max_abs_difference": 1e-6, "keys_missing": [], "keys_unexpected": []}


@pytest.fixture
def result():
    return demo.Result(
        job=JobView.model_validate(job("succeeded")),
        reconstruction_ratio_before=1.9,
        reconstruction_ratio_after=0.6,
        linear_top1=0.97,
        linear_top1_random_init=0.94,
        images_per_s=512.0,
        start_s=11.0,
        job_s=88.0,
        wall_s=111.0,
        picture=Path("/state/demo/picture.png"),
        backbone=Path("/state/demo/hf"),
        max_abs_difference=1e-6,
        failures=[],
    )


def test_the_spec_is_one():
    spec = parse_spec(demo.SPEC)
    assert spec.register_as == "digits-demo"
    assert spec.resources.workers == 2


def test_a_good_result_fails_nothing_and_shows_every_figure(result):
    assert list(demo._failures(result, GOOD)) == []
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(demo.rendered(result))
    shown = console.export_text()
    for figure in ("1.900", "0.600", "0.940", "0.970", "512", "111 s", "/state/demo/picture.png", "1.0e-06"):
        assert figure in shown


@pytest.mark.parametrize(
    ("change", "verified", "told"),
    [
        ({"reconstruction_ratio_after": 0.76}, {}, "reconstruction ratio is 0.760"),
        ({"reconstruction_ratio_after": float("nan")}, {}, "reconstruction ratio is nan"),
        ({"max_abs_difference": 2e-5}, {}, "differ by 2e-05"),
        ({"max_abs_difference": float("nan")}, {}, "differ by nan"),
        ({}, {"keys_missing": ["layernorm.weight"]}, "keys missing in the pulled backbone: layernorm.weight"),
    ],
)
def test_what_did_not_come_out_is_told(result, change, verified, told):
    (failure,) = demo._failures(result.model_copy(update=change), GOOD | verified)
    assert told in failure
