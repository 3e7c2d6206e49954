"""Figures of searches: what they show, what they leave out, and when they are drawn."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from many_trials import SPEC as MANY
from many_trials import distribution, write_trials
from optuna.trial import TrialState

from service.adapters.studies import Studies
from service.http.problems import ApiProblem
from service.searches import figures, plots
from service.searches.plots import Plots
from service.searches.schemas import PlotName, PlotView
from trainer.spec import metric_keys
from trainer.spec.search import SearchSpec

JOB = "job-0123456789abcd"
NAMES: tuple[PlotName, ...] = get_args(PlotName)
RATE, WEIGHT, PATCH, NAME = (
    "optimization.base_lr",
    "method.consistency_weight",
    "model.patch_size",
    "method.name",
)
TWO = [{"metric": metric_keys.LINEAR_TOP1}, {"metric": metric_keys.IMAGES_PER_S}]


def make_spec(**fields: Any) -> SearchSpec:
    """A search over a number, a choice of numbers, a choice of words, and one that not every trial has."""
    base = {
        "dataset": {"uri": "s3://datasets/cifar10"},
        "model": {"preset": "vit_base_patch16_224"},
        "evaluation": {"every_epochs": 5},
    }
    space = {
        RATE: {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
        PATCH: {"type": "categorical", "choices": [16, 8, 32]},
        NAME: {"type": "categorical", "choices": ["mae", "rc_mae"]},
        WEIGHT: {"type": "float", "low": 0.0, "high": 4.0, "when": {NAME: "rc_mae"}},
    }
    return SearchSpec.parse({"kind": "search", "base": base, "space": space} | fields)


SPEC = make_spec()
SEVERAL = make_spec(objective=TWO, scheduler={"name": "none"})


class Search:
    """A study in a file, its trials added as a driver does, and its figures."""

    def __init__(self, url: str, spec: SearchSpec) -> None:
        self.spec, self.studies = spec, Studies(url)
        self.studies.make(JOB, spec)
        self.plots = Plots(self.studies)

    def add(
        self,
        values: float | Sequence[float] | None = None,
        state: TrialState = TrialState.COMPLETE,
        point: Mapping[str, Any] | None = None,
        curve: Mapping[int, float] | None = None,
        **attributes: Any,
    ) -> None:
        study = self.studies.study(JOB)
        assert study is not None
        found = {RATE: 1e-4, PATCH: 16, NAME: "mae"} if point is None else point
        space = {path: distribution(self.spec.space[path]) for path in found}
        study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=[values] if isinstance(values, float) else values,
                params=dict(found),
                distributions=space,
                intermediate_values=dict(curve or {}),
                user_attrs=attributes,
            )
        )

    def figure(self, name: PlotName, *params: str) -> PlotView:
        return self.plots.figure(JOB, self.spec, name, params)


@pytest.fixture(scope="module")
def empty_studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without studies, to copy: making the tables takes longer than most tests."""
    path = tmp_path_factory.mktemp("studies") / "empty.db"
    studies = Studies(f"sqlite:///{path}")
    studies.make(JOB, SPEC)
    studies.delete(JOB)
    studies.close()
    return path


@pytest.fixture
def url(tmp_path: Path, empty_studies: Path) -> str:
    path = tmp_path / "studies.db"
    shutil.copy(empty_studies, path)
    return f"sqlite:///{path}"


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is nine hours ahead."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def search(url: str) -> Iterator[Search]:
    search = Search(url, SPEC)
    yield search
    search.studies.close()


@pytest.fixture
def several(url: str) -> Iterator[Search]:
    search = Search(url, SEVERAL)
    yield search
    search.studies.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studies]:
    """A study of 3,000 trials of eight parameters, with 20 values on the way at most."""
    url = f"sqlite:///{tmp_path_factory.mktemp('studies')}/studies.db"
    write_trials(url, JOB, 3_000)
    studies = Studies(url)
    yield studies
    studies.close()


def chosen(name: PlotName) -> tuple[str, ...]:
    return (RATE, WEIGHT) if name == "contour" else ()


def numbers(trace: Mapping[str, Any]) -> list[int]:
    """Of a trace whose points are trials."""
    return [row[0] for row in trace["customdata"]]


# --- what a page can take ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pareto"])
def test_every_figure_of_thousands_of_trials_is_small_and_says_what_it_left_out(many: Studies, name: PlotName):
    view = Plots(many).figure(JOB, MANY, name, chosen(name))
    written = json.dumps([view.data, view.layout], allow_nan=False)
    assert len(written) < 1_000_000
    assert view.data
    assert "template" not in view.layout
    assert "title" not in view.layout
    assert view.layout["uirevision"] == "/".join([name, *chosen(name)])
    complete = sum(trial.state is TrialState.COMPLETE for trial in many.trials(JOB))
    all_of_them = 3_000 if name in {"curves", "timeline"} else complete
    left_out = f"Shows {view.trials:,} of {all_of_them:,} trials."
    assert view.note == (left_out if view.trials < all_of_them else None)
    floats = [value for row in view.data[0].get("customdata", []) for value in row if isinstance(value, float)]
    assert all(value == float(f"{value:.6g}") for value in floats)


def test_a_figure_of_many_parameters_is_drawn_of_fewer_trials():
    paths = {f"augmentation.crop_scale.{index}" for index in range(30)}
    space = dict.fromkeys(paths, MANY.space["method.mask_ratio"])
    spec = MANY.model_copy(update={"space": space})
    trials = [
        optuna.trial.create_trial(
            value=index / 300,
            params=dict.fromkeys(paths, 0.4 + index / 1000),
            distributions={path: distribution(parameter) for path, parameter in space.items()},
        )
        for index in range(300)
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    view = figures.draw(spec, "slice", (), trials)
    assert len(json.dumps([view.data, view.layout])) < 1_000_000
    assert 10 < view.trials < 300
    assert view.note == f"Shows {view.trials} of 300 trials."
    assert 299 in numbers(view.data[0])  # the best one


@pytest.mark.parametrize("name", ["curves", "slice", "contour", "parallel"])
def test_the_best_trials_stay_where_some_are_left_out(many: Studies, name: PlotName):
    complete = [trial for trial in many.trials(JOB) if trial.state is TrialState.COMPLETE]
    best = sorted(complete, key=lambda trial: trial.value, reverse=True)[:20]
    view = Plots(many).figure(JOB, MANY, name, chosen(name))
    shown = {trace.get("name") for trace in view.data}
    if name in {"slice", "contour"}:
        shown = {f"trial {number}" for number in numbers(view.data[-1])}
    assert {f"trial {trial.number}" for trial in best} <= shown


# --- what they show ---------------------------------------------------------------------------------------------------


def test_the_history_is_of_complete_trials_and_the_best_so_far(search: Search):
    search.add(0.5)
    search.add(0.9, repeat_of=0)
    search.add(0.4)
    search.add(0.3, TrialState.PRUNED, curve={5: 0.3})
    search.add(0.7, point={RATE: 1.23456789e-4, PATCH: 8, NAME: "rc_mae", WEIGHT: 2.0})
    values, best = search.figure("history").data
    assert (values["x"], values["y"]) == ([0, 2, 4], [0.5, 0.4, 0.7])
    assert (best["x"], best["y"]) == ([0, 2, 4], [0.5, 0.5, 0.7])
    assert values["customdata"][-1] == [4, 0.7, 0.000123457, 8, "rc_mae", 2]
    assert values["customdata"][0] == [0, 0.5, 0.0001, 16, "mae", "–"]
    for place, name in enumerate(["trial", metric_keys.LINEAR_TOP1, *SPEC.space]):
        assert f"{name}: %{{customdata[{place}]}}" in values["hovertemplate"]
    assert search.figure("history").layout["yaxis"]["title"]["text"] == metric_keys.LINEAR_TOP1
    assert search.figure("history").layout["xaxis"]["dtick"] == 1  # no half trials


def test_the_history_of_what_should_be_small_falls(url: str):
    search = Search(url, make_spec(objective={"metric": metric_keys.RECONSTRUCTION_RATIO}, scheduler={"name": "none"},
                                   space={RATE: {"type": "float", "low": 1e-5, "high": 1e-3}}))  # fmt: skip
    for value in (0.5, 0.8, 0.2):
        search.add(value, point={RATE: 1e-4})
    assert search.figure("history").data[1]["y"] == [0.5, 0.5, 0.2]
    search.studies.close()


def test_curves_mark_where_trials_were_pruned_and_each_keeps_its_colour(search: Search):
    search.add(0.6, curve={5: 0.3, 10: 0.6})
    search.add(0.2, TrialState.PRUNED, curve={5: 0.1, 10: 0.2})
    search.add(None, TrialState.FAIL, curve={5: 0.1})
    search.add(None, TrialState.RUNNING, curve={5: 0.4})
    search.add(0.7, curve={5: 0.7}, repeat_of=0)
    *curves, pruned = (view := search.figure("curves")).data
    assert [(curve["name"], curve["x"], curve["y"]) for curve in curves] == [
        ("trial 0", [5, 10], [0.3, 0.6]),
        ("trial 1", [5, 10], [0.1, 0.2]),
        ("trial 3", [5], [0.4]),
    ]
    assert (pruned["name"], pruned["x"], pruned["y"], numbers(pruned)) == ("pruned", [10], [0.2], [1])
    assert view.trials == 2
    search.add(0.9, curve={5: 0.9})
    later = search.figure("curves").data
    assert [trace["line"] for trace in later[:3]] == [trace["line"] for trace in curves]
    assert len({trace["line"]["color"] for trace in later[:4]}) == 4


def test_each_line_of_the_parallel_coordinates_is_its_own_trials(search: Search):
    values = [0.1, 0.9, 0.3, 0.7, 0.5]
    for index, value in enumerate(values):
        search.add(value, point={RATE: 10 ** (-5 + index / 2), PATCH: [32, 8, 16][index % 3], NAME: "mae"})
    view = search.figure("parallel")
    lines = view.data[:-1]
    assert sorted(line["name"] for line in lines) == [f"trial {number}" for number in range(5)]
    for line in lines:
        number = int(line["name"].split()[1])
        assert line["y"][0] == pytest.approx((values[number] - 0.1) / 0.8)
        assert f"trial: {number}<br>" in line["text"]
        assert f"{PATCH}: {[32, 8, 16][number % 3]}" in line["text"]
    assert view.layout["xaxis"]["ticktext"] == [metric_keys.LINEAR_TOP1, "name", "patch_size", "base_lr", "trial"]


def test_importance_needs_a_few_trials_and_finds_what_decides(search: Search):
    assert search.figure("importance").note == "Nothing to show: no trial has completed yet."
    search.add(0.5)
    assert search.figure("importance").note == "Nothing to show: it needs 4 complete trials and has 1."
    for index in range(30):
        search.add(1 - index / 30, point={RATE: 1e-5 + index * 3e-5, PATCH: [16, 8, 32][index % 3], NAME: "mae"})
    view = search.figure("importance")
    (bars,) = view.data
    assert bars["y"][-1] == RATE
    assert set(bars["y"]) == {RATE, PATCH, NAME}  # no trial has the fourth
    assert sum(bars["x"]) == pytest.approx(1, abs=1e-4)
    assert view.note == "Based on only 31 complete trials: it is reliable from 50."


def test_parameters_can_be_chosen(search: Search):
    for index in range(4):
        search.add(index / 4, point={RATE: 1e-5 * (index + 1), PATCH: 16, NAME: "mae"})
    assert len(search.figure("slice").data) == 3
    (only,) = search.figure("slice", RATE).data
    assert only["x"] == [1e-05, 2e-05, 3e-05, 4e-05]
    assert search.figure("slice", WEIGHT).note == f"Nothing to show: no complete trial has {WEIGHT} yet."


def test_a_contour_is_of_two_parameters_that_trials_have_together(search: Search):
    search.add(0.1, point={RATE: 1e-5, PATCH: 16, NAME: "mae"})
    search.add(0.2, point={RATE: 2e-5, PATCH: 16, NAME: "rc_mae", WEIGHT: 1.0})
    assert search.figure("contour", RATE, WEIGHT).note == (
        f"Nothing to show: no two complete trials differ in both {RATE} and {WEIGHT} yet."
    )
    search.add(0.3, point={RATE: 3e-5, PATCH: 16, NAME: "rc_mae", WEIGHT: 2.0})
    heights, points = search.figure("contour", RATE, WEIGHT).data
    assert heights["type"] == "contour"
    assert sorted(value for row in heights["z"] for value in row if value is not None) == [0.2, 0.3]
    assert {*points["x"], *points["y"]} == {2e-05, 3e-05, 1.0, 2.0}
    assert numbers(points) == [1, 2]


def test_the_timeline_is_of_all_that_began(search: Search, far_away: None):  # noqa: ARG001 - the time zone
    search.add(0.5)
    search.add(0.5, repeat_of=0)
    search.add(None, TrialState.FAIL)
    search.add(None, TrialState.WAITING, point={})
    search.add(None, TrialState.RUNNING)
    view = search.figure("timeline")
    assert {trace["name"]: trace["y"] for trace in view.data} == {"complete": [0, 1], "failed": [2], "running": [4]}
    assert view.trials == 3
    first = search.studies.trials(JOB)[0].datetime_start.astimezone(UTC)
    assert view.data[0]["base"][0] == f"{first:%Y-%m-%dT%H:%M:%S}"


def test_a_front_is_of_several_objectives(search: Search):
    search.add(0.5)
    assert "several objectives" in search.figure("pareto").note
    assert search.figure("pareto").data == []


def test_several_objectives(several: Search):
    for values in ([0.5, 10.0], [0.6, 5.0], [0.4, 9.0], [0.7, 1.0]):
        several.add(values)
    beaten, best = (front := several.figure("pareto")).data
    assert (numbers(beaten), numbers(best)) == ([2], [0, 1, 3])
    titles = [front.layout[axis]["title"]["text"] for axis in ("xaxis", "yaxis")]
    assert titles == [metric_keys.LINEAR_TOP1, metric_keys.IMAGES_PER_S]
    values, best_so_far = several.figure("history").data
    assert (values["y"], best_so_far["y"]) == ([0.5, 0.6, 0.4, 0.7], [0.5, 0.6, 0.6, 0.7])
    assert several.figure("parallel").layout["xaxis"]["ticktext"][:2] == [
        metric_keys.LINEAR_TOP1,
        metric_keys.IMAGES_PER_S,
    ]
    for name in ("importance", "slice"):
        assert several.figure(name).data


@pytest.mark.parametrize("name", NAMES)
def test_before_there_are_trials_a_figure_is_empty_and_says_why(search: Search, name: PlotName):
    view = search.figure(name, *chosen(name))
    assert (view.data, view.trials) == ([], 0)
    assert view.note.startswith("Nothing to show: no trial has ")
    unknown = Plots(search.studies).figure("job-of-no-study", SPEC, name, chosen(name))
    assert unknown == view


TWO_NEEDED = f"param: contour needs two parameters, each as param=…, of {RATE}, {PATCH}, {NAME}, {WEIGHT}"


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("contour", (), TWO_NEEDED),
        (
            "contour",
            (RATE,),
            f"{TWO_NEEDED} (given: {RATE!r})",
        ),
        ("contour", (RATE, RATE), f"param: names a parameter twice (given: '{RATE}, {RATE}')"),
        (
            "slice",
            (RATE, "optimization.lr"),
            f"param: is not a parameter of this search, which has {', '.join(SPEC.space)} (given: 'optimization.lr')",
        ),
        ("history", (RATE,), f"param: history shows no parameters: leave `param` out (given: {RATE!r})"),
    ],
)
def test_parameters_that_make_no_figure_are_refused(search: Search, name: PlotName, params: tuple[str, ...], said: str):
    with pytest.raises(ApiProblem) as refused:
        search.figure(name, *params)
    assert (refused.value.status, refused.value.code, refused.value.detail) == (422, "parameter_invalid", said)


# --- when they are drawn ----------------------------------------------------------------------------------------------


def test_a_figure_is_drawn_again_only_when_its_trials_have_changed(search: Search):
    search.add(0.5, curve={5: 0.5})
    history, curves = search.figure("history"), search.figure("curves")
    assert search.figure("history") is history
    assert search.figure("slice", RATE) is not search.figure("slice", NAME)
    search.add(None, TrialState.RUNNING, curve={5: 0.4})
    assert search.figure("history") is history
    assert len(search.figure("curves").data) == len(curves.data) + 1
    study = search.studies.study(JOB)
    study.tell(1, 0.6)
    assert search.figure("history").trials == 2


def test_a_curve_grows_while_its_trial_runs(search: Search):
    search.add(None, TrialState.RUNNING, curve={5: 0.4})
    assert search.figure("curves").data[0]["x"] == [5]
    study = search.studies.study(JOB)
    study._storage.set_trial_intermediate_value(study.get_trials()[0]._trial_id, 10, 0.6)
    assert search.figure("curves").data[0]["x"] == [5, 10]


def test_who_asks_for_the_same_figure_at_once_waits_for_the_one_that_is_drawn(
    search: Search, monkeypatch: pytest.MonkeyPatch
):
    search.add(0.5)
    draw, drawn, ready = figures.draw, [], threading.Barrier(8)

    def counted(*arguments: Any) -> PlotView:
        drawn.append(arguments)
        return draw(*arguments)

    def ask(_: int) -> PlotView:
        ready.wait()
        return search.figure("history")

    monkeypatch.setattr(figures, "draw", counted)
    with ThreadPoolExecutor(8) as pool:
        views = list(pool.map(ask, range(8)))
    assert len(drawn) == 1
    assert all(view is views[0] for view in views)


def test_so_many_figures_are_remembered(search: Search, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plots, "FIGURES", 2)
    search.add(0.5)
    first = search.figure("history")
    search.figure("timeline")
    assert search.figure("history") is first
    search.figure("slice")
    assert search.figure("history") is first  # it was asked for after the timeline
    search.figure("timeline")
    search.figure("slice")
    assert search.figure("history") is not first
