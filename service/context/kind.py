"""The interface that the API uses for a kind of job. `service.kinds` implements it once for each kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from sqlalchemy.orm import Session

from service.adapters.mlflow_store import MlflowStore
from service.auth.caller import Caller
from service.db.tables import Job
from service.settings import Settings
from trainer.protocol.inspection import Warned
from trainer.protocol.outcome import Reason
from trainer.protocol.progress import Newest
from trainer.spec.cluster import ClusterShape
from trainer.spec.job import JobSpec, Kind, parse_spec
from trainer.spec.plan import Schedule
from trainer.spec.pretrain import PretrainSpec

if TYPE_CHECKING:
    from service.context.app_state import AppState

Spec = TypeVar("Spec", bound=JobSpec)


class Subject(NamedTuple):
    """What a job is about."""

    dataset_uri: str
    """Empty for a job that has none."""
    trained: PretrainSpec | None = None
    """The spec of the network that is trained or published, with the `export` that applies, and of a search the spec
    that its trials start from; None where there is no network."""
    images: int | None = None
    """Of the datasets of an evaluation, where earlier jobs have counted them."""
    fixed: Mapping[str, Any] = MappingProxyType({})
    """Fields of the spec that the job keeps with other values, such as the version that a name means now."""


class JobKind(ABC, Generic[Spec]):
    """A kind of job. It has no state of its own."""

    name: ClassVar[Kind]
    has_trials: ClassVar[bool] = False
    """Whether it appears under `/v1/searches`."""
    stop_refused: ClassVar[str | None] = "it has no trials to finish: pause or cancel it"
    """Why `stop` does not apply, and what to do instead; None where it applies."""
    from_scratch_refused: ClassVar[str | None] = None
    """Why a retry cannot start from scratch; None where it can."""
    advice: ClassVar[Mapping[Reason, str]] = MappingProxyType({})
    """What to do about a failure, where it is something else than `jobs.lifecycle.POLICIES` says."""

    @abstractmethod
    def check(self, app_state: AppState, caller: Caller, spec: Spec) -> Subject:
        """Check that the service can run a spec; raises the spec's error where it cannot.

        Reads from the artifact storage: no transaction may be open.
        """

    @abstractmethod
    def recheck(self, session: Session, settings: Settings, spec: Spec) -> None:
        """Check a job that is about to be queued again; raises the spec's error where it is no longer allowed, or what
        it needs is gone."""

    @abstractmethod
    def schedule(self, session: Session, spec: Spec) -> Schedule | None:
        """Steps of training, or of each trial; None where they are unknown or differ between trials."""

    @abstractmethod
    def memory_per_worker(self, resolved: Spec, subject: Subject, cluster: ClusterShape) -> int:
        """Estimated memory of one worker, in bytes."""

    def continuation(self, has_checkpoint: bool) -> str:
        """What a job does once it is queued again, to complete "retry the job to …"."""
        return "continue from the last checkpoint" if has_checkpoint else "start from the beginning"

    def points(self, spec: Spec) -> int | None:  # noqa: ARG002
        """The number of points of a finite search space; None where it is infinite, and where nothing is searched."""
        return None

    def plan_note(self, spec: Spec, resolved: Spec) -> str:  # noqa: ARG002
        """A sentence that the plan's message ends with; may be empty."""
        return ""

    def plan_warnings(self, session: Session, spec: Spec) -> list[Warned]:  # noqa: ARG002
        """What earlier jobs have found out that speaks against a spec."""
        return []

    def spec_to_resolve(self, job: Job) -> JobSpec:
        """The spec to resolve for the next attempt."""
        return parse_spec(job.run_spec)

    def with_resources(self, document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
        """A copy of a spec's document with changed resources."""
        return {**document, "resources": document["resources"] | changes}

    def trial_progress(
        self,
        spec: Spec,  # noqa: ARG002
        newest: Newest,  # noqa: ARG002
        steps: str | None,  # noqa: ARG002
        running: Sequence[int],  # noqa: ARG002
    ) -> Mapping[str, Any] | None:
        """How far a trial of this kind is, by its run: fields of `TrialProgress` and others; None before it is known.

        ``running``: its starts that are under way.
        """
        return None

    def source_job(self, job: Job) -> str | None:  # noqa: ARG002
        """Id of the other job that trained what this job registers; None where it trains itself."""
        return None

    def other_folders(self, job: Job, mlflow: MlflowStore) -> Sequence[str]:  # noqa: ARG002
        """Artifact folders to delete with a job, besides its own folder and those of its versions."""
        return ()


Kinds = Mapping[str, JobKind[Any]]
"""All kinds, by name."""
