"""What the client asks about searches and their trials."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Unpack

from service.client.log_query import LogQuery, log_params
from service.client.transport import Transport, given
from service.http.schemas import Page
from service.jobs.schemas import ImageView, JobView, LogPage, MetricsView
from service.searches.schemas import PlotName, PlotView, SearchView, TrialDetail, TrialPage, TrialState, TrialView


class SearchCalls(Transport):
    """The part of `Client` that is about searches. A search's id is its job's; trials are named by their numbers."""

    def search(self, search_id: str) -> SearchView:
        """A search as it is now: what it seeks, how far it is, what is best."""
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
        """Change a search's budget, also while it runs; None stays. ``max_hours`` of ``none`` is no limit.

        More ``trials`` than before, or more hours where they had run out, let a search that has succeeded go on.
        """
        body = given({"trials": trials, "concurrency": concurrency, "max_failed": max_failed, "max_hours": max_hours})
        if max_hours == "none":
            body["max_hours"] = None
        return self._ask(SearchView, "PATCH", f"/v1/searches/{search_id}", json=body, retried=True)

    def trials(
        self,
        search_id: str,
        *,
        states: Sequence[TrialState] = (),
        sort: str | None = None,
        page_size: int = 100,
    ) -> Iterator[TrialView]:
        """A search's trials in one of ``states``, asking for page after page as they are taken.

        ``sort`` is `number`, `value`, `epoch`, `duration`, `started` or `param:<path>`, with `-` before it the greatest
        first; newest first without it.
        """
        filters = {"state": [state.value for state in states], "sort": sort, "limit": page_size}
        return self._pages(TrialPage, f"/v1/searches/{search_id}/trials", filters)

    def trial(self, search_id: str, number: int) -> TrialDetail:
        """One trial with its curve, its results, and how it differs from the best."""
        return self._get(TrialDetail, _trial(search_id, number))

    def add_trials(
        self,
        search_id: str,
        points: Sequence[Mapping[str, Any]],
        *,
        beyond_budget: bool = False,
        idempotency_key: str | None = None,
    ) -> list[TrialView]:
        """Have chosen ``points`` tried next: values by path; what one leaves out the algorithm chooses.

        They count against the budget, or with ``beyond_budget`` raise it by as many. With the key of an earlier request
        for the same: the trials that it has added, and no others.
        """
        path = f"/v1/searches/{search_id}/trials"
        body = {"points": [dict(point) for point in points], "beyond_budget": beyond_budget}
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._ask(TrialPage, "POST", path, json=body, headers=headers, retried=True).items

    def stop_trial(self, search_id: str, number: int) -> TrialView:
        """End one running trial as it is; its last value is kept. Sent once, as `stop`."""
        return self._ask(TrialView, "POST", f"{_trial(search_id, number)}/stop")

    def retry_trial(self, search_id: str, number: int) -> TrialView:
        """Have the values of a failed trial tried once more, beyond the budget; gives the new trial.

        Sent once; asked again while that one waits or runs, it is the same.
        """
        return self._ask(TrialView, "POST", f"{_trial(search_id, number)}/retry")

    def promote(
        self,
        search_id: str,
        number: int,
        *,
        overrides: Mapping[str, Any] | None = None,
        register_as: str | None = None,
    ) -> JobView:
        """Submit a trial's spec as a pretraining job; asked for again, it is the same job.

        ``overrides`` are other values than the trial's, by their path in the spec, such as ``optimization.epochs``;
        ``register_as`` names the job's backbone, in place of what the search's base says.
        """
        body = given({"overrides": dict(overrides or {}), "register_as": register_as})
        return self._ask(JobView, "POST", f"{_trial(search_id, number)}/promote", json=body, retried=True)

    def trials_csv(self, search_id: str) -> str:
        """All trials as a table in CSV, a line each below its head."""
        return self._send("GET", f"/v1/searches/{search_id}/trials.csv", retried=True).text

    def trial_logs(self, search_id: str, number: int, **query: Unpack[LogQuery]) -> LogPage:
        """A page of a trial's log lines, as `logs`. ``attempt`` is one of the search's."""
        return self._get(LogPage, f"{_trial(search_id, number)}/logs", log_params(query))

    def trial_metrics(
        self, search_id: str, number: int, keys: Sequence[str] = (), *, points: int | None = None
    ) -> MetricsView:
        """A trial's curves by optimiser step; as `metrics`."""
        return self._get(MetricsView, f"{_trial(search_id, number)}/metrics", {"key": list(keys), "points": points})

    def trial_images(self, search_id: str, number: int) -> list[ImageView]:
        """A trial's pictures of reconstructions, by step."""
        return list(self._pages(Page[ImageView], f"{_trial(search_id, number)}/images", {}))

    def trial_image(self, search_id: str, number: int, name: str) -> bytes:
        """One picture, as PNG."""
        return self._send("GET", f"{_trial(search_id, number)}/images/{name}", retried=True).content

    def plot(self, search_id: str, name: PlotName, params: Sequence[str] = ()) -> PlotView:
        """A figure for plotly.js. ``params`` are the parameters it is about: two for `contour`."""
        return self._get(PlotView, f"/v1/searches/{search_id}/plots/{name}", {"param": list(params)})


def _trial(search_id: str, number: int) -> str:
    return f"/v1/searches/{search_id}/trials/{number}"
