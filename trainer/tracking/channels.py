"""Commands to an attempt and its heartbeat, carried by tags of an MLflow run."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mlflow.entities import RunTag
from mlflow.tracking import MlflowClient

from trainer.protocol.command import Command, SearchOrders
from trainer.protocol.names import TAG_ACTIVITY, TAG_ATTEMPT, TAG_COMMAND, TAG_OBSERVED, TAG_SEARCH, heartbeat
from trainer.protocol.progress import Activity
from trainer.protocol.request import AttemptRequest
from trainer.tracking.client import MLFLOW

LAST_GENERATION = 2**31 - 1
"""Generation of a command that no later command replaces."""


class RunChannel:
    """A job's channel to the service."""

    def __init__(self, tracking_uri: str, run_id: str, attempt: int) -> None:
        self._client, self._run_id, self._attempt = MlflowClient(tracking_uri), run_id, attempt

    def read_command(self) -> Command | None:
        """The service's last command. If a later attempt of the job has begun, this one is to cancel."""
        return _command_in(self._tags(), self._attempt)

    def acknowledge(self, command: Command) -> None:
        self._client.set_tag(self._run_id, TAG_OBSERVED, command.model_dump_json())

    def heartbeat(self, activity: Activity | None) -> None:
        tags = [RunTag(heartbeat(self._attempt), f"{time.time():.3f}")]
        if activity:
            tags.append(RunTag(TAG_ACTIVITY, activity.model_dump_json()))
        self._client.log_batch(self._run_id, tags=tags)

    def _tags(self) -> Mapping[str, str]:
        tags: Mapping[str, str] = self._client.get_run(self._run_id).data.tags
        return tags


class SearchChannel(RunChannel):
    """A search's channel: it carries the search's orders beside the commands."""

    orders: SearchOrders | None = None
    """The newest orders; None until the service has given any."""

    def read_command(self) -> Command | None:
        tags = self._tags()
        self.orders = _orders_in(tags) or self.orders
        return _command_in(tags, self._attempt)

    def read_command_patiently(self) -> Command | None:
        """`read_command`, retried for five minutes; raises `StorageError` if MLflow stays unreachable."""
        return MLFLOW.call("read the commands of the search", self.read_command)


class TrialChannel:
    """A trial's channel: it reads the search's commands, and sends its heartbeat to its own run."""

    def __init__(self, request: AttemptRequest, search_run_id: str, search_attempt: int, number: int) -> None:
        """``request`` is the trial's, and ``number`` its number."""
        self._own = RunChannel(request.tracking_uri, request.run_id, request.attempt)
        self._client, self._run_id = MlflowClient(request.tracking_uri), search_run_id
        self._attempt, self._number = search_attempt, number

    def read_command(self) -> Command | None:
        """The search's command, or a cancellation if this trial alone was stopped."""
        tags = self._client.get_run(self._run_id).data.tags
        orders = _orders_in(tags)
        if orders and self._number in orders.stopped:
            return Command(attempt=self._attempt, generation=LAST_GENERATION, action="cancel")
        return _command_in(tags, self._attempt)

    def acknowledge(self, command: Command) -> None:
        """Nothing: the search acknowledges its commands."""

    def heartbeat(self, activity: Activity | None) -> None:
        """For those who watch the trial. Whether the search is alive, its own heartbeat tells."""
        self._own.heartbeat(activity)


def _command_in(tags: Mapping[str, str], attempt: int) -> Command | None:
    if int(tags.get(TAG_ATTEMPT, "0")) > attempt:
        return Command(attempt=attempt, generation=LAST_GENERATION, action="cancel")
    text = tags.get(TAG_COMMAND)
    return Command.model_validate_json(text) if text else None


def _orders_in(tags: Mapping[str, str]) -> SearchOrders | None:
    text = tags.get(TAG_SEARCH)
    return SearchOrders.model_validate_json(text) if text else None
