"""The client's methods for searches and their trials."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Unpack

from service.client.log_query import LogQuery, log_params
from service.client.transport import Transport, without_none
from service.http.schemas import Page
from service.jobs.output_schemas import ImageView, LogPage, MetricsView
from service.jobs.schemas import JobView
from service.searches.schemas import PlotName, PlotView, SearchView, TrialDetail, TrialPage, TrialState, TrialView


class SearchCalls(Transport):
    """The methods of `Client` for searches. A search has its job's id; trials have numbers."""

    def search(self, search_id: str) -> SearchView:
        """A search's objectives, its progress, and its best trials."""
        return self._get(SearchView, f"/v1/searches/{search_id}")

    def change_search(
        self,
        search_id: str,
        *,
        trials: int | None = None,
        concurrency: int | None = None,
        max_failed: int | None = None,
        max_hours: float | Literal["none"] | None = None,
    ) -> SearchView:
        """Change a search's budget, also while it runs. None leaves a value as it is; ``max_hours="none"`` is no limit.

        A search that has succeeded continues when it gets more ``trials``, or more hours where it had run out of them.
        """
        body = without_none(
            {"trials": trials, "concurrency": concurrency, "max_failed": max_failed, "max_hours": max_hours}
        )
        if max_hours == "none":
            body["max_hours"] = None
        return self._request(SearchView, "PATCH", f"/v1/searches/{search_id}", json=body, retried=True)

    def trials(
        self,
        search_id: str,
        *,
        states: Sequence[TrialState] = (),
        sort: str | None = None,
        page_size: int = 100,
    ) -> Iterator[TrialView]:
        """A search's trials in one of ``states``; pages are requested as they are needed.

        ``sort`` is `number`, `value`, `epoch`, `duration`, `started` or `param:<path>`, with a leading `-` for
        descending order. By default the newest trials come first.
        """
        filters = {"state": [state.value for state in states], "sort": sort, "limit": page_size}
        return self._pages(TrialPage, f"/v1/searches/{search_id}/trials", filters)

    def trial(self, search_id: str, number: int) -> TrialDetail:
        """One trial with its curve, its results, and its differences from the best one."""
        return self._get(TrialDetail, _trial(search_id, number))

    def add_trials(
        self,
        search_id: str,
        points: Sequence[Mapping[str, Any]],
        *,
        beyond_budget: bool = False,
        idempotency_key: str | None = None,
    ) -> list[TrialView]:
        """Try the given ``points`` next: values by path. The algorithm chooses the parameters that a point leaves out.

        They count against the budget, or raise it by as many with ``beyond_budget``. A repeated request with the same
        key and points returns the trials that the first one added.
        """
        path = f"/v1/searches/{search_id}/trials"
        body = {"points": [dict(point) for point in points], "beyond_budget": beyond_budget}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._request(TrialPage, "POST", path, json=body, headers=headers, retried=True).items

    def stop_trial(self, search_id: str, number: int) -> TrialView:
        """Stop a running trial; its last value is kept. Not retried, like `stop`."""
        return self._request(TrialView, "POST", f"{_trial(search_id, number)}/stop")

    def retry_trial(self, search_id: str, number: int) -> TrialView:
        """Try the values of a failed trial again, beyond the budget; returns the new trial.

        Not retried. Called again while the new trial waits or runs, it returns that one.
        """
        return self._request(TrialView, "POST", f"{_trial(search_id, number)}/retry")

    def promote(
        self,
        search_id: str,
        number: int,
        *,
        overrides: Mapping[str, Any] | None = None,
        register_as: str | None = None,
    ) -> JobView:
        """Submit a trial's spec as a pretraining job. The same request again returns the same job.

        ``overrides`` replace values of the trial, by their path in the spec, such as ``optimization.epochs``;
        ``register_as`` names the job's backbone in place of the name in the search's base spec.
        """
        body = without_none({"overrides": dict(overrides or {}), "register_as": register_as})
        return self._request(JobView, "POST", f"{_trial(search_id, number)}/promote", json=body, retried=True)

    def trials_csv(self, search_id: str) -> str:
        """All trials as CSV with a header line."""
        return self._send("GET", f"/v1/searches/{search_id}/trials.csv", retried=True).decode(errors="replace")

    def trial_logs(self, search_id: str, number: int, **query: Unpack[LogQuery]) -> LogPage:
        """A page of a trial's log lines, as `logs`. ``attempt`` is one of the search's."""
        return self._get(LogPage, f"{_trial(search_id, number)}/logs", log_params(query))

    def trial_metrics(
        self, search_id: str, number: int, keys: Sequence[str] = (), *, points: int | None = None
    ) -> MetricsView:
        """A trial's metric curves by optimiser step; see `metrics`."""
        return self._get(MetricsView, f"{_trial(search_id, number)}/metrics", {"key": list(keys), "points": points})

    def trial_images(self, search_id: str, number: int) -> list[ImageView]:
        """A trial's reconstructions, by step."""
        return list(self._pages(Page[ImageView], f"{_trial(search_id, number)}/images", {}))

    def trial_image(self, search_id: str, number: int, name: str) -> bytes:
        """One image, as PNG."""
        return self._send("GET", f"{_trial(search_id, number)}/images/{name}", retried=True)

    def plot(self, search_id: str, name: PlotName, params: Sequence[str] = ()) -> PlotView:
        """A figure for plotly.js. ``params`` are the parameters that it shows: two for `contour`."""
        return self._get(PlotView, f"/v1/searches/{search_id}/plots/{name}", {"param": list(params)})


def _trial(search_id: str, number: int) -> str:
    return f"/v1/searches/{search_id}/trials/{number}"
