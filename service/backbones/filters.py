"""Filters of lists of backbones. SQL narrows the names down; each version that was read is then looked at itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import ColumnElement

from service.auth.caller import Caller
from service.backbones.registry import Backbone, Served
from service.context.app_state import AppState
from service.http.filters import Comparison, check_keys, comparisons, label_pairs
from service.jobs import version_tags, versions, visibility
from trainer.protocol import names


@dataclass(frozen=True)
class Filters:
    """Filters of a list of backbones: the name must match, and a version must match all others."""

    name_contains: str | None = None
    job: str | None = None
    """The job that registered it, or that trained it."""
    dataset: str | None = None
    """The dataset's fingerprint or URI."""
    type: str | None = None
    """`backbone` or `classifier`."""
    method: str | None = None
    network: str | None = None
    export_format: str | None = None
    alias: str | None = None
    owner: str | None = None
    """Who owns the version, or the backbone."""
    words: Sequence[str] = ()
    """Each must be in the name, the dataset, a description or a label of the version or its backbone."""
    labels: Sequence[tuple[str, str]] = ()
    """Names and values; the version or its backbone must have each."""
    metrics: Sequence[Comparison] = field(default=())

    @classmethod
    def of(
        cls,
        *,
        search: str | None = None,
        label: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
        **others: str | None,
    ) -> Filters:
        """The filters in query parameters. Raises the API's 422 for one that cannot be read."""
        texts = {"words": (search or "").split(), "labels": label_pairs(label or ())}
        return cls(**others, **texts, metrics=comparisons(metrics or ()))  # type: ignore[arg-type]

    def conditions(self) -> list[ColumnElement[bool]]:
        """What SQL can tell of a version and its backbone."""
        owned = [versions.owned_by(self.owner)] if self.owner else []
        return [*owned, *versions.with_words(self.words), *versions.with_labels(self.labels)]

    def match(self, version: Served, backbone: Backbone) -> bool:
        """Whether a version matches all filters but that of the name; ``backbone`` has all its versions."""
        tags = version.row.tags
        aliases = {alias for alias, number in backbone.aliases.items() if number == version.number}
        filters: list[tuple[str | None, set[str | None]]] = [
            (self.job, {version.row.job_id, version.row.trained_by}),
            (self.dataset, {tags.get(names.TAG_DATASET), version.row.dataset_uri}),
            (self.type, {version.type}),
            (self.method, {tags.get(names.TAG_METHOD)}),
            (self.network, {tags.get(names.TAG_NETWORK)}),
            (self.export_format, {*version.formats}),
            (self.alias, {*aliases}),
            (self.owner, {version.row.owner, backbone.row.owner}),
        ]
        return (
            all(value is None or value in values for value, values in filters)
            and versions.has_words(self.words, version.row, backbone.row)
            and versions.has_labels(self.labels, version.row, backbone.row)
            and all(each.holds(version.metrics) for each in self.metrics)
        )

    def check_metrics(self, state: AppState, caller: Caller) -> None:
        """Raises the API's 422 for a metric of no version that the caller sees: a typing error is no empty list."""
        if not self.metrics:
            return
        with state.database.query() as session:
            tags = visibility.tags_of_shown(session, caller)
        check_keys(self.metrics, {key for each in tags for key in version_tags.metrics_of(each)})
