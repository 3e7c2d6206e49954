"""What a search's spec has to fulfil, and what its plan says."""

from __future__ import annotations

from typing import Final

from sqlalchemy.orm import Session

from service.auth.caller import Caller
from service.context.app_state import AppState
from service.db.database import Database
from service.db.tables import Job
from service.http.problems import ApiProblem
from service.jobs import repository
from service.jobs.state import State
from service.jobs.submission import check_dataset_roots, nested, schedule
from service.kinds.following import AFTER, check_following
from service.kinds.subjects import Found, refused
from service.settings import Settings
from trainer.protocol.inspection import Warned
from trainer.protocol.names import STUDY_VARIABLE
from trainer.spec.base import Problem, SpecError
from trainer.spec.cluster import plural
from trainer.spec.evaluate import EvaluateSpec
from trainer.spec.job import Kind
from trainer.spec.measurements import measurements
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec
from trainer.spec.search import SearchSpec
from trainer.spec.subject import CheckpointRef

BATCH: Final = "optimization.global_batch_size"
LAYER: Final = "features.layer"


def check_search(settings: Settings, database: Database, caller: Caller, spec: SearchSpec) -> None:
    """Raises `SpecError` where the service cannot run a search."""
    if settings.study_url is None:
        text = f"this service is not set up for searches: set {STUDY_VARIABLE}, or submit single jobs"
        raise SpecError([Problem("kind", "/kind", spec.kind, text)])
    base = spec.base_spec
    with database.read() as session:
        if isinstance(base, PretrainSpec):
            check_following(session, caller, base, f"base.{AFTER}")
        for index, earlier in enumerate(spec.warm_start):
            why = _warm_start_problem(session, caller, spec, earlier)
            if why:
                raise SpecError([Problem(f"warm_start.{index}", f"/warm_start/{index}", earlier, why)])


def check_base(settings: Settings, base: PretrainSpec) -> None:
    """Raises `SpecError` where a dataset of the trials is outside the dataset roots."""
    try:
        check_dataset_roots(settings, base)
    except SpecError as error:
        raise nested("base", error) from error


def _warm_start_problem(session: Session, caller: Caller, spec: SearchSpec, earlier: str) -> str | None:
    """Why a search cannot warm-start from an earlier one; None where it can."""
    try:
        job: Job = repository.visible_job(session, earlier, caller)
    except ApiProblem as error:
        return f"{error.detail}: name a search of yours"
    if job.kind != Kind.SEARCH:
        return f"is a {job.kind} job: name a search"
    other = SearchSpec.parse(job.spec)
    if set(other.space) != set(spec.space):
        return f"has another space: {', '.join(sorted(other.space))}"
    if other.objectives != spec.objectives:
        objectives = ", ".join(f"{each.metric} ({each.mode})" for each in other.objectives)
        return f"has another objective: {objectives}"
    return None


def trial_schedule(session: Session, spec: SearchSpec) -> Schedule | None:
    """The schedule of a trial, where the number of images is known and all trials have the same batch size.

    Raises `SpecError` where the images do not fill a batch.
    """
    base = spec.base_spec
    if BATCH in spec.space or not isinstance(base, PretrainSpec):
        return None
    try:
        return schedule(session, base)
    except SpecError as error:
        raise nested("base", error) from error


def describe_trials(spec: SearchSpec, resolved: SearchSpec) -> str:
    """In words: the number of trials and of points, how many run at a time, and why fewer than requested."""
    requested, fitting, size = spec.budget.concurrency, resolved.budget.concurrency, spec.size
    text = f"It runs {plural(spec.trials, 'trial')}, {fitting} at a time."
    if size is not None:
        text += f" Its space has {plural(size, 'point')}, and none is trained twice."
    base, trial = spec.base_spec, spec.at({})
    if isinstance(base, EvaluateSpec) and isinstance(trial, EvaluateSpec):
        text += f" Each makes {plural(len(measurements(trial)), 'measurement')}."
        if base.test is None:
            text += (
                f" A held-out share of base.dataset ({base.held_out:g}) chooses among them: name other test images "
                "when you promote the best one, with the override test.uri."
            )
    if fitting < requested:
        text += f" {requested} were requested: the cluster has room for {plural(fitting, 'trial')} of this size."
    return text


def check_trials(app_state: AppState, caller: Caller, spec: SearchSpec, base: EvaluateSpec, found: Found) -> None:
    """Raises the spec's error where evaluations as trials would not all measure the same, or could not."""
    if isinstance(base.backbone, CheckpointRef) and base.backbone.checkpoint is None:
        with app_state.database.read() as session:
            job = repository.visible_job(session, base.backbone.job, caller)
        if not State(job.state).terminal:
            text = f"{job.id} still trains, and all trials must measure the same: name one of its checkpoints"
            raise refused("base.backbone.checkpoint", text, None)
    layers = spec.space.get(LAYER)
    if found.model is None or layers is None:
        return
    for where, value in layers.values_to_check().items():
        if isinstance(value, int) and value > found.model.depth:
            place = ["space", LAYER, *where.split(".")]
            text = f"is {value}, and the network has {found.model.depth} blocks"
            raise SpecError([Problem(".".join(place), "/" + "/".join(place), value, text)])


def chosen_on_test(base: EvaluateSpec) -> list[Warned]:
    """What a plan says of trials that are chosen by the images that test them."""
    if base.test is None:
        return []
    text = (
        "the trials are chosen by their scores on base.test, so the best one's are too good there: leave base.test "
        "out, so that a held-out share of base.dataset chooses, and name the test when you promote the best trial "
        "(override test.uri)"
    )
    return [Warned(code="chosen_on_test", message=text)]
