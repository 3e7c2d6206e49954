"""What a search's spec means, and what it refuses before anything runs."""

import json
from random import Random

import pytest

from trainer.search.study import contains, distribution
from trainer.spec.base import SpecError
from trainer.spec.cluster import ClusterShape, Gang, NodeShape
from trainer.spec.job import parse_spec
from trainer.spec.plan import gang, resolve
from trainer.spec.search import SearchSpec, parse_point
from trainer.spec.search_sections import PromoteSpec

MOMENTUM, WEIGHT, RATE = "method.teacher.momentum", "method.consistency_weight", "optimization.base_lr"
BASE = {
    "dataset": {"uri": "builtin://digits"},
    "model": {"img_size": 8, "patch_size": 2, "in_chans": 1},
    "optimization": {"epochs": 10, "global_batch_size": 64},
    "evaluation": {"every_epochs": 2},
}
SPACE = {
    MOMENTUM: {"type": "float", "low": 0.9, "high": 0.9999},
    RATE: {"type": "float", "low": 1e-5, "high": 1e-3, "log": True},
}


def document(**parts):
    return {"kind": "search", "base": BASE, "space": SPACE} | parts


def search(**parts) -> SearchSpec:
    return SearchSpec.parse(document(**parts))


def floats(low, high, **more):
    return {"type": "float", "low": low, "high": high} | more


def choices(*values):
    return {"type": "categorical", "choices": list(values)}


def problem_of(**parts):
    with pytest.raises(SpecError) as caught:
        parse_spec(document(**parts))
    (problem,) = caught.value.problems
    return problem


def test_what_is_left_out_has_the_defaults_that_people_expect():
    spec = search()
    assert (spec.name, spec.objectives[0].metric, spec.objectives[0].mode) == (
        "search-digits",
        "eval/linear_top1",
        "max",
    )
    assert (spec.algorithm.name, spec.scheduler.name, spec.grace_epochs) == ("tpe", "asha", 2)
    assert (spec.budget.trials, spec.budget.concurrency, spec.budget.max_failed) == (32, 4, 8)
    assert search(objective={"metric": "eval/reconstruction_ratio"}).objectives[0].mode == "min"


def test_a_search_reads_back_as_it_was_and_its_base_stays_as_it_was_written():
    spec = search(
        objective=[{"metric": "eval/linear_top1"}, {"metric": "throughput/images_per_s"}], scheduler={"name": "none"}
    )
    again = parse_spec(json.loads(spec.model_dump_json()))
    assert again == spec
    assert again.base == BASE


def test_what_follows_from_a_searched_value_follows_it_in_each_trial():
    spec = search(space={"optimization.epochs": {"type": "int", "low": 4, "high": 80}, **SPACE})
    assert spec.at({"optimization.epochs": 80}).optimization.warmup_epochs == 2
    assert spec.epochs == 80
    mae = search(space={"method.name": {"type": "categorical", "choices": ["mae", "rc_mae"]}})
    assert mae.at({"method.name": "mae"}).method.teacher is None
    assert mae.at({"method.name": "rc_mae"}).method.consistency_weight == 1


def test_trials_register_nothing_and_a_promoted_one_what_the_base_says():
    spec = search(base=BASE | {"register_as": "best"})
    assert spec.at({RATE: 1e-4}).register_as is None
    promoted = spec.promoted({RATE: 1e-4}, PromoteSpec(overrides={"optimization.epochs": 100}), {"workers": 2})
    assert (promoted["register_as"], promoted["resources"]) == ("best", {"workers": 2})
    assert promoted["optimization"] == {"epochs": 100, "global_batch_size": 64, "base_lr": 1e-4}
    assert spec.base["optimization"] == BASE["optimization"]


@pytest.mark.parametrize(
    ("parts", "field", "text"),
    [
        ({"space": {"optimization.base_rl": SPACE[RATE]}}, "space.optimization.base_rl", "did you mean 'base_lr'?"),
        ({"space": {"optimisation.a": SPACE[RATE]}}, "space.optimisation.a", "did you mean 'optimization'?"),
        ({"space": {"optimization": SPACE[RATE]}}, "space.optimization", "such as optimization.epochs"),
        ({"space": {"resources.workers": choices(1, 2)}}, "space.resources.workers", "set it in base"),
        ({"space": {"dataset.uri": choices("/a", "/b")}}, "space.dataset.uri", "a search for each"),
        ({"space": {MOMENTUM: floats(0.9, 1.5)}}, f"space.{MOMENTUM}.high", "less than or equal to 1"),
        ({"space": {RATE: floats(0, 1, log=True)}}, f"space.{RATE}.low", "above 0 if log"),
        ({"space": {RATE: floats(2, 1)}}, f"space.{RATE}.high", "greater than low 2.0"),
        ({"space": {RATE: floats(1, 2, log=True, step=1)}}, f"space.{RATE}.step", "remove one"),
        ({"space": {"optimization.epochs": floats(4, 8)}}, "space.optimization.epochs.type", "use type int"),
        (
            {"space": {"optimization.precision": choices("fp32", "fp8")}},
            "space.optimization.precision.choices.1", "must be 'auto', 'fp32' or 'bf16'",
        ),
        ({"space": {"seed": choices(1, 1)}}, "space.seed.choices", "all be different"),
        ({"space": {"seed": {"type": "categorial", "choices": [1, 2]}}}, "space.seed", "'float', 'int', 'categorical'"),
        (
            {"space": {"method.mask_ratio": floats(0.99, 0.999)}},
            "space", "none is a valid spec; the first: method.mask_ratio: leaves 0 of 16",
        ),
        ({"objective": {"metric": "eval/lineer"}}, "objective.metric", "there are eval/linear_top1"),
        ({"objective": {"metric": "train/loss"}, "space": {WEIGHT: {"type": "float", "low": 0, "high": 2}}},
         "objective.metric", f"cannot be compared between trials, because {WEIGHT} is searched"),
        ({"objective": [{"metric": "train/loss"}, {"metric": "train/loss"}], "scheduler": {"name": "none"}},
         "objective", "must not name a metric twice"),
        ({"base": BASE | {"evaluation": {"every_epochs": 2, "probes": []}}}, "objective.metric",
         "base.evaluation.probes is []: add linear to it"),
        ({"base": BASE | {"evaluation": {"every_epochs": 2, "probes": ["linear"]}},
          "objective": {"metric": "eval/knn_top1"}},
         "objective.metric", "base.evaluation.probes is [linear]: add knn to it"),
        ({"scheduler": {"grace_epochs": 3}}, "scheduler.grace_epochs", "a multiple of base.evaluation.every_epochs 2"),
        ({"scheduler": {"grace_epochs": 10}}, "scheduler.grace_epochs", "below a trial's 10 epochs"),
        ({"base": BASE | {"evaluation": {"every_epochs": 20}}}, "scheduler.name", "lower base.evaluation.every_epochs"),
        ({"objective": [{"metric": "eval/linear_top1"}, {"metric": "throughput/images_per_s"}]},
         "scheduler.name", "several objectives: use none"),
        ({"algorithm": {"name": "grid"}}, f"space.{MOMENTUM}", "too many values for a grid"),
        ({"algorithm": {"name": "cmaes"}, "space": {"seed": {"type": "categorical", "choices": [1, 2]}, **SPACE}},
         "space.seed.type", "supports only numbers"),
        ({"base": BASE | {"optimisation": {}}}, "base.optimisation", "did you mean 'optimization'?"),
        ({"base": BASE | {"optimization": {"epochs": -1}}}, "base.optimization.epochs", "greater than or equal to 1"),
        ({"warm_start": ["job-1"], "algorithm": {"name": "random"}}, "warm_start", "random does not learn from trials"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_at_its_place(parts, field, text):
    problem = problem_of(**parts)
    assert problem.field == field
    assert text in problem.message


def test_a_problem_in_the_space_points_at_the_parameter_whatever_dots_it_has():
    problem = problem_of(space={MOMENTUM: {"type": "float", "low": 0.9, "high": 1.5}})
    assert problem.pointer == f"/space/{MOMENTUM}/high"


# --- conditions -------------------------------------------------------------------------------------------------------

CONDITIONAL = {
    MOMENTUM: SPACE[MOMENTUM] | {"when": {"method.name": "rc_mae"}},
    "method.name": {"type": "categorical", "choices": ["mae", "rc_mae"]},
}


def test_a_parameter_with_a_condition_is_there_only_where_it_applies():
    spec = search(space=CONDITIONAL)
    points = [spec.draw(Random(seed)) for seed in range(30)]
    assert {(point["method.name"], MOMENTUM in point) for point in points} == {("mae", False), ("rc_mae", True)}
    assert [path for path, _ in spec.ordered()] == ["method.name", MOMENTUM]


@pytest.mark.parametrize(
    ("when", "text"),
    [
        ({"method.nam": "mae"}, "is not another parameter"),
        ({"method.name": "dino"}, "is never 'dino'"),
        ({RATE: 1e-4}, "too many values"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(when, text):
    problem = problem_of(
        space=CONDITIONAL | {RATE: SPACE[RATE], WEIGHT: {"type": "int", "low": 0, "high": 2, "when": when}}
    )
    assert problem.field == f"space.{WEIGHT}.when"
    assert text in problem.message


def test_conditions_in_a_circle_are_refused():
    both = {
        "method.name": {"type": "categorical", "choices": ["mae", "rc_mae"], "when": {"seed": 1}},
        "seed": {"type": "int", "low": 1, "high": 2, "when": {"method.name": "mae"}},
    }
    assert "is circular" in problem_of(space=both).message


# --- grids, points, resources -----------------------------------------------------------------------------------------


def test_a_search_has_no_more_trials_than_its_space_has_points():
    grid = {
        "method.mask_ratio": {"type": "float", "low": 0.5, "high": 0.75, "step": 0.05},
        "seed": {"type": "int", "low": 0, "high": 4, "step": 2},
    }
    for algorithm in ("grid", "tpe"):
        spec = search(space=grid, algorithm={"name": algorithm})
        assert (spec.size, spec.trials) == (18, 18)
        assert search(space=grid, algorithm={"name": algorithm}, budget={"trials": 5}).trials == 5
    ratio = spec.space["method.mask_ratio"]
    assert [ratio.at(index) for index in range(ratio.size())] == pytest.approx((0.5, 0.55, 0.6, 0.65, 0.7, 0.75))
    assert [ratio.index(round(ratio.at(index), 2)) for index in range(6)] == list(range(6))
    assert (search().size, search().trials) == (None, 32)


STEPS = {"type": "int", "low": 1, "high": 5, "step": 2}


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ({WEIGHT: STEPS}, 3),
        ({WEIGHT: STEPS, "seed": {"type": "int", "low": 1, "high": 10**9}}, 3 * 10**9),
        ({WEIGHT: STEPS, "method.name": choices("mae", "rc_mae")}, 6),
        ({WEIGHT: STEPS | {"when": {"method.name": "rc_mae"}}, "method.name": choices("mae", "rc_mae")}, 4),
        ({WEIGHT: STEPS, "method.mask_ratio": floats(0.5, 0.7, step=0.1, when={WEIGHT: [1, 3]})}, 7),
        ({"method.mask_ratio": floats(0.5, 0.7, step=0.1), WEIGHT: STEPS | {"when": {"method.mask_ratio": 0.7}}}, 5),
        (
            {
                "seed": {"type": "int", "low": 0, "high": 3, "when": {"method.mask_ratio": [0.5, 0.6]}},
                "method.mask_ratio": floats(0.5, 0.7, step=0.1, when={WEIGHT: 5}),
                WEIGHT: STEPS,
            },
            2 + 2 * 4 + 1,
        ),
        (
            {
                "seed": {"type": "int", "low": 0, "high": 3, "when": {"method.name": "mae", WEIGHT: [1, 3]}},
                "method.name": choices("mae", "rc_mae"),
                WEIGHT: STEPS,
            },
            3 + 2 * 4 + 1,
        ),
        (
            {WEIGHT: floats(0.0, 1.0) | {"when": {"method.name": "rc_mae"}}, "method.name": choices("mae", "rc_mae")},
            None,
        ),
    ],
)
def test_the_points_of_a_space_are_counted_with_its_conditions(space, size):
    spec = search(space=space)
    assert spec.size == size
    if size is not None and size < 1000:
        points = list(spec.points())
        assert len(points) == len({spec.key(point) for point in points}) == size
        assert all(spec.is_complete(point) and parse_point(spec, point) == point for point in points)


def test_many_parameters_with_conditions_are_counted_at_once():
    """Each of the pairs has three points; there are more points than could be gone through."""
    pairs = ("model.depth", "model.num_heads"), ("model.decoder_depth", "model.decoder_num_heads"), (WEIGHT, MOMENTUM)
    space = {one: choices(1, 2) for one, _ in pairs}
    space |= {other: choices(0.9, 0.99) if other == MOMENTUM else choices(1, 2) for _, other in pairs}
    space |= {other: space[other] | {"when": {one: 1}} for one, other in pairs}
    assert search(space=space).size == 3 ** len(pairs)


def test_points_with_fixed_values_are_gone_through_alone():
    spec = search(space={WEIGHT: STEPS, "method.mask_ratio": floats(0.5, 0.7, step=0.1, when={WEIGHT: [1, 3]})})
    assert list(spec.points({WEIGHT: 5, "method.mask_ratio": 0.6})) == [{WEIGHT: 5}]
    assert next(spec.points({"method.mask_ratio": 0.6})) == {WEIGHT: 1, "method.mask_ratio": 0.6}
    assert len(list(spec.points({"method.mask_ratio": 0.6}))) == 3


def test_choices_that_are_lists_come_back_as_they_were():
    spec = search(space={"optimization.betas": {"type": "categorical", "choices": [[0.9, 0.95], [0.9, 0.999]]}})
    point = {"optimization.betas": [0.9, 0.999]}
    stored = spec.stored(point)
    assert stored == {"optimization.betas": "[0.9, 0.999]"}
    assert spec.point(stored) == point
    assert spec.at(spec.point(stored)).optimization.betas == (0.9, 0.999)


@pytest.mark.parametrize(("value", "fits"), [(0.5, True), (0.7, True), (0.1 + 0.5, True), (0.55, False)])
def test_a_chosen_value_of_a_parameter_with_steps_is_one_of_them(value, fits):
    spec = search(space={"method.mask_ratio": {"type": "float", "low": 0.5, "high": 0.7, "step": 0.1}})
    if fits:
        assert parse_point(spec, {"method.mask_ratio": value})
        return
    with pytest.raises(SpecError, match=r"must be 0\.5 plus a multiple of step 0\.1"):
        parse_point(spec, {"method.mask_ratio": value})


STEPPED = [(0.1, 0.3, 0.1), (0.1, 0.8, 0.2), (0.05, 0.95, 0.15), (0, 0.9, 0.3), (0.7, 1, 0.1)]


@pytest.mark.filterwarnings("ignore:The distribution is specified by")
@pytest.mark.parametrize(("low", "high", "step"), STEPPED)
def test_all_values_of_a_parameter_with_steps_can_be_chosen_and_learned_from(low, high, step):
    """Also as they were with the rounding of floats, which may lie above the end of the range."""
    path = "optimization.weight_decay"
    parameter = {"type": "float", "low": low, "high": high, "step": step}
    spec = search(space={path: parameter})
    drawn = [point[path] for point in spec.points()]
    assert len(drawn) > 2
    for index, value in enumerate(drawn):
        assert low <= value <= high
        assert contains(distribution(spec.space[path]), value)
        assert parse_point(spec, {path: value}) == parse_point(spec, {path: low + step * index}) == {path: value}
    for beyond in (low - 0.001 * step, high + 0.001 * step):
        with pytest.raises(SpecError, match="must be between"):
            parse_point(spec, {path: beyond})


def test_a_chosen_point_is_checked_against_the_space():
    spec = search(space=CONDITIONAL | {RATE: SPACE[RATE]})
    assert parse_point(spec, {RATE: 1e-4}) == {RATE: 1e-4}
    with pytest.raises(SpecError) as caught:
        parse_point(spec, {RATE: 1.0, "method.name": "mae", MOMENTUM: 0.99, "seed": 1})
    fields = {problem.field: problem.pointer for problem in caught.value.problems}
    assert fields == {f"params.{path}": f"/params/{path}" for path in ("seed", MOMENTUM, RATE)}


@pytest.mark.parametrize(
    ("cluster", "resources", "settled", "concurrency"),
    [
        (ClusterShape.of(2), {}, (1, 0, 1), 2),
        (ClusterShape.of(8), {}, (1, 0, 2), 4),
        (ClusterShape.of(8), {"cpus_per_worker": 4}, (1, 0, 4), 2),
        (ClusterShape((NodeShape(16, 4), NodeShape(16, 4))), {}, (1, 1, 8), 4),
        (ClusterShape((NodeShape(16, 4), NodeShape(16, 4))), {"workers": 4}, (4, 1, 4), 2),
        (ClusterShape.of(1), {"cpus_per_worker": 4}, (1, 0, 4), 1),
    ],
)
def test_a_search_takes_as_many_trials_at_a_time_as_fit(cluster, resources, settled, concurrency):
    spec = resolve(search(base=BASE | {"resources": resources}), cluster)
    found = spec.base_spec.resources
    assert (found.workers, found.gpus_per_worker, found.cpus_per_worker) == settled
    assert spec.budget.concurrency == concurrency
    assert gang(spec) == Gang(concurrency * settled[0], settled[2], settled[1])
    assert resolve(spec, cluster) == spec
