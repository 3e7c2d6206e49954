"""The client's methods for evaluations."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from service.client.transport import Transport, label_texts, without_none
from service.evaluations.schemas import EvaluationDetailView, EvaluationSummaryView, EvaluationTableView
from service.http.schemas import Page
from service.jobs.schemas import JobView
from trainer.spec.evaluate import Baseline, Pooling

Dataset = str | Mapping[str, Any]
"""A dataset's URI, or its section of a spec."""
Protocol = str | Mapping[str, Any]
"""A protocol's name, or its section of a spec."""


class EvaluationCalls(Transport):
    """The methods of `Client` for evaluations."""

    def evaluate(
        self,
        backbone: str | Mapping[str, Any],
        dataset: Dataset,
        *,
        test: Dataset | None = None,
        protocols: Sequence[Protocol] | None = None,
        seeds: int | None = None,
        pooling: Pooling | None = None,
        baselines: Sequence[Baseline] | None = None,
        register_as: str | None = None,
        **more: Any,
    ) -> JobView:
        """Submit a job that measures a backbone on labelled images.

        ``backbone`` is `NAME`, `NAME:3` or `NAME@alias` of a registered one, ``{"job": …}`` with perhaps a
        ``checkpoint``, or ``{"uri": …}`` of weights from elsewhere. ``test`` is another dataset; by default a share of
        ``dataset`` is held out. By default `knn` and `linear` are measured. With ``register_as`` it is `finetune`,
        alone or beside the ``protocols``, and its classifier is registered under this name. Unless that protocol says
        otherwise, it reads the class token, as transformers' classifiers do. ``more`` are further fields of the spec.
        """
        spec = evaluate_spec(
            backbone, dataset, test=test, protocols=protocols, seeds=seeds, pooling=pooling, baselines=baselines,
            register_as=register_as, **more,
        )  # fmt: skip
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        return self._request(JobView, "POST", "/v1/jobs", json=spec, headers=headers, retried=True)

    def evaluations(
        self,
        *,
        backbone: str | None = None,
        job: str | None = None,
        dataset: str | None = None,
        test: str | None = None,
        protocols: Sequence[str] = (),
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        sort: str | None = None,
        page_size: int = 100,
    ) -> Iterator[EvaluationSummaryView]:
        """Evaluations that have succeeded, newest first.

        ``backbone`` is `NAME`, `NAME:3` or `NAME@alias`; ``job`` trained what was measured; ``dataset`` and ``test``
        are URIs, titles or fingerprints. ``sort`` is `created_at`, `finished_at` or a score such as
        `eval/linear_top1`, with a leading `-` for descending order.
        """
        query = _filters(backbone, dataset, test, protocols) | {
            "job": job,
            "owner": owner,
            "label": label_texts(labels),
        }
        query |= {"created_after": created_after.isoformat() if created_after else None, "sort": sort}
        return self._pages(Page[EvaluationSummaryView], "/v1/evaluations", query | {"limit": page_size})

    def evaluation(self, job_id: str) -> EvaluationDetailView:
        """Everything that an evaluation has found, by its job."""
        return self._get(EvaluationDetailView, f"/v1/evaluations/{job_id}")

    def evaluation_table(
        self,
        *,
        backbone: str | None = None,
        dataset: str | None = None,
        test: str | None = None,
        protocols: Sequence[str] = (),
    ) -> EvaluationTableView:
        """Backbones against measurements, each cell with its newest score; see `evaluations` for the filters."""
        return self._get(EvaluationTableView, "/v1/evaluations/table", _filters(backbone, dataset, test, protocols))


def evaluate_spec(
    backbone: str | Mapping[str, Any],
    dataset: Dataset,
    *,
    test: Dataset | None = None,
    protocols: Sequence[Protocol] | None = None,
    seeds: int | None = None,
    pooling: Pooling | None = None,
    baselines: Sequence[Baseline] | None = None,
    register_as: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The spec of an evaluation; see `EvaluationCalls.evaluate`."""
    measured = [_section(each, "name") for each in protocols or ()]
    if register_as is not None:
        measured = _registering(measured, register_as)
    spec = {
        "kind": "evaluate",
        "backbone": backbone,
        "dataset": _section(dataset, "uri"),
        "test": None if test is None else _section(test, "uri"),
        "protocols": measured or None,
        "seeds": seeds,
        "features": {"pooling": pooling} if pooling else None,
        "baselines": None if baselines is None else list(baselines),
    }
    return without_none(spec) | more


def _registering(protocols: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The protocols, of which `finetune` registers its classifier under a name."""
    given = next((each for each in protocols if each.get("name") == "finetune"), {})
    fine_tuned = {"name": "finetune", "pooling": "cls"} | given | {"register_as": name}
    return [*(each for each in protocols if each is not given), fine_tuned]


def _section(value: str | Mapping[str, Any], field: str) -> dict[str, Any]:
    """A section of a spec, of which a text is the one field that it needs."""
    return {field: value} if isinstance(value, str) else dict(value)


def _filters(backbone: str | None, dataset: str | None, test: str | None, protocols: Sequence[str]) -> dict[str, Any]:
    return {"backbone": backbone, "dataset": dataset, "test": test, "protocol": list(protocols)}
