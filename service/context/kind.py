"""What the API asks of a kind of job. `service.kinds` has one class for each; the application hands them down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

from sqlalchemy.orm import Session

from service.adapters.mlflow_store import MlflowStore
from service.auth.caller import Caller
from service.db.tables import Job
from service.settings import Settings
from trainer.spec.job import JobSpec, Kind, parse_spec
from trainer.spec.plan import ClusterShape, Schedule
from trainer.spec.pretrain import PretrainSpec

if TYPE_CHECKING:
    from service.context.app_state import AppState

Spec = TypeVar("Spec", bound=JobSpec)


class Subject(NamedTuple):
    """What a job is about."""

    dataset_uri: str
    trained: PretrainSpec
    """The spec of the network that is trained or published; of a search, the spec that its trials start from."""


class JobKind(ABC, Generic[Spec]):
    """A kind of job. It has no state of its own."""

    name: ClassVar[Kind]
    has_trials: ClassVar[bool] = False
    """`/v1/searches` shows it, and `stop` lets its running trials finish."""
    from_scratch_refused: ClassVar[str | None] = None
    """Why a retry cannot start from scratch."""

    @abstractmethod
    def check(self, state: AppState, caller: Caller, spec: Spec) -> Subject:
        """Raises the spec's error where the service cannot run it. Asks the storage: no transaction may be open."""

    @abstractmethod
    def check_again(self, settings: Settings, spec: Spec) -> None:
        """Raises the spec's error where a job that is queued again is no longer allowed."""

    @abstractmethod
    def schedule(self, session: Session, spec: Spec) -> Schedule | None:
        """Steps of training, or of each trial; None where they are unknown, or differ between trials."""

    @abstractmethod
    def memory_per_worker(self, resolved: Spec, trained: PretrainSpec, cluster: ClusterShape) -> int:
        """Bytes, estimated."""

    def plan_note(self, spec: Spec, resolved: Spec) -> str:  # noqa: ARG002
        """What else a plan says, for people."""
        return ""

    def spec_to_resolve(self, job: Job) -> JobSpec:
        """What the next attempt's spec is resolved from."""
        return parse_spec(job.run_spec)

    def with_resources(self, document: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
        """A spec's document with other resources."""
        return {**document, "resources": document["resources"] | changes}

    @abstractmethod
    def registers_as(self, spec: Spec) -> str | None:
        """The backbone that a job of this spec registers its versions under."""

    def other_folders(self, job: Job, mlflow: MlflowStore) -> Sequence[str]:  # noqa: ARG002
        """Artifact folders that are deleted with a job, besides its own and its versions'."""
        return ()


Kinds = Mapping[str, JobKind[Any]]
"""All kinds, by name."""
