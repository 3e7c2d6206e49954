"""What the controller sees: all live attempts at a glance, once a round, or one of them closely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from pydantic import ValidationError

from service.adapters.mlflow_runs import RunView
from service.adapters.ray_cluster import ClusterUnreachable, RayState, Submission
from service.adapters.storage import OutsideRoot
from service.controller.context import ControllerContext
from service.controller.decide import Observation
from service.controller.dependencies import Unavailable
from service.controller.watch import LONGEST_GAP_S, Watch
from service.db.tables import Attempt, Job, now
from trainer.protocol import names
from trainer.protocol.outcome import Outcome, Reason


@dataclass(frozen=True)
class Glance:
    """What Ray and MLflow say of all live attempts at one moment."""

    records: Mapping[str, Submission] | None
    """By submission id; None where Ray is unavailable."""
    views: Mapping[str, RunView]
    """By run id, without those that could not be read."""

    def state(self, attempt: Attempt) -> RayState:
        if self.records is None:
            return RayState.UNKNOWN
        record = self.records.get(attempt.submission_id)
        return record.state if record else RayState.ABSENT


class Observer:
    """Asks Ray, MLflow and the storage about attempts."""

    def __init__(self, context: ControllerContext) -> None:
        self._context, self._dependencies = context, context.dependencies
        # Twice the pause between rounds, as these take time too.
        self.watch = Watch(longest_gap_s=max(LONGEST_GAP_S, 2 * context.app.settings.poll_interval_s))

    def glance(self, live: Sequence[tuple[Job, Attempt | None]], jobs_wait: bool) -> Glance:
        """One request to Ray and one to MLflow, however many attempts there are; none where nothing needs them."""
        attempts = [(job, attempt) for job, attempt in live if attempt and attempt.ended_at is None]
        self.watch.keep([_key(attempt) for _, attempt in attempts])
        records = self._records() if attempts or jobs_wait else {}
        return Glance(records, self._views([job.run_id for job, _ in attempts if job.run_id]))

    def observe(self, job: Job, attempt: Attempt, ray: RayState, run: RunView | None) -> Observation:
        """What these answers mean. Times are counted by this process's own looks: see `Watch`."""
        moment, key = now(), _key(attempt)
        beat, silent, starting = None, timedelta(0), timedelta(0)
        if run:
            beat = attempt.heartbeat if run.gone else run.heartbeat(attempt.number)  # no newer one will arrive
            silent = min(self.watch.look(key, "beat", beat), self._dependencies.mlflow.available_for())
            starting = self.watch.look(key, "start", beat is None)
        is_new = beat != attempt.heartbeat or attempt.heartbeat_at is None
        return Observation(
            now=moment,
            ray=ray,
            run=run,
            beat=beat,
            beat_at=moment if beat is not None and is_new else attempt.heartbeat_at,
            silent=silent,
            starting=starting,
            commanded=self.watch.look(key, "command", (job.state, attempt.command, attempt.commanded_at)),
            stopping=self.watch.look(key, "stop", attempt.stop_asked_at),
        )

    def ray_state(self, attempt: Attempt) -> RayState:
        """Ray's own word on one submission: only that says that it does not exist."""
        state = RayState.UNKNOWN
        try:
            with self._dependencies.ray.call():
                state = self._context.app.ray.state(attempt.submission_id)
                if state is RayState.UNKNOWN:
                    raise ClusterUnreachable("it does not report the state of its jobs")
        except Unavailable:
            pass  # UNKNOWN is the answer then
        return state

    def run_of(self, job: Job) -> RunView | None:
        """A job's run; None where it has none or MLflow is unavailable."""
        return self._run(job.run_id) if job.run_id else None

    def outcome(self, artifact_uri: str, attempt: int) -> Outcome | None:
        """The outcome that an attempt left, if any; an unreadable one counts as a failure of the storage.

        Raises `Unavailable`.
        """
        name = names.outcome_file(attempt)
        try:
            with self._dependencies.storage.call():
                data = self._context.app.artifacts.read(artifact_uri, name)
        except OutsideRoot as error:  # of a state folder that was copied or moved
            text = f"{error}, {self._context.app.artifacts.root}, so {name} cannot be read."
            return Outcome(state="failed", reason=Reason.STORAGE_ERROR, message=text)
        if data is None:
            return None
        try:
            return Outcome.model_validate_json(data)
        except ValidationError as error:
            text = f"{artifact_uri}/{name} holds {len(data)} bytes that are not an outcome: {error.errors()[0]['msg']}."
            return Outcome(state="failed", reason=Reason.STORAGE_ERROR, message=text)

    def _records(self) -> Mapping[str, Submission] | None:
        try:
            with self._dependencies.ray.call():
                return self._context.app.ray.submissions()
        except Unavailable:
            return None

    def _views(self, run_ids: Sequence[str]) -> dict[str, RunView]:
        if not run_ids:
            return {}
        try:
            with self._dependencies.mlflow.call():
                views = self._context.app.mlflow.views(run_ids)
        except Unavailable:
            return {}
        missing = {run_id: self._run(run_id) for run_id in run_ids if run_id not in views}  # somebody deleted them
        return views | {run_id: view for run_id, view in missing.items() if view}

    def _run(self, run_id: str) -> RunView | None:
        try:
            with self._dependencies.mlflow.call():
                return self._context.app.mlflow.run(run_id)
        except Unavailable:
            return None  # callers treat None as unknown


def _key(attempt: Attempt) -> tuple[str, int]:
    return attempt.job_id, attempt.number
