"""Models of a champion's rule and of the history of aliases. Imports pydantic only: the client uses this module."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import Field, StrictBool, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

from service.http.schemas import Body, Owner, View

MOST_APPROVERS: Final = 50
MOST_LIMITS: Final = 16
REASON_LENGTH: Final = 1000
"""Most characters of the reason of a move."""

Better = Literal["higher", "lower"]
MetricKey = Annotated[str, StringConstraints(pattern=r"^[a-z]+/[A-Za-z0-9_./-]{1,200}$")]
Reason = Annotated[str, StringConstraints(strip_whitespace=True, max_length=REASON_LENGTH)]


class MetricLimitView(View):
    """An evaluation result that must not be worse than the champion's."""

    metric: MetricKey
    """Its key, such as `eval/linear_top1`."""
    better: Better = "higher"
    """Whether higher or lower values are better."""
    tolerance: float = Field(0.0, ge=0.0, le=1e6)
    """By how much it may be worse."""

    def in_words(self) -> str:
        """The limit as people read it."""
        side = "lower" if self.better == "higher" else "higher"
        by = f" by more than {self.tolerance:g}" if self.tolerance else ""
        return f"{self.metric} must not be {side} than the champion's{by}"


class ChampionRuleView(View):
    """What a version and whoever approves it must meet for the version to become the champion."""

    approvers: list[Owner] = Field(default_factory=list, max_length=MOST_APPROVERS)
    """If there are any, the owners of tokens who alone may move the champion, whoever owns the backbone."""
    not_by_owner: StrictBool = False
    """Whether the owners of the jobs that trained and registered a version may not approve it."""
    must_not_worsen: Sequence[MetricLimitView] = Field(default_factory=list, max_length=MOST_LIMITS)
    """Results that a version must have, and that must not be worse than those of the champion."""
    reason_required: StrictBool = False
    """Whether each move needs a reason."""
    signed: StrictBool = False
    """Whether a version must be signed, and its checksums be those that were signed."""

    def in_words(self) -> list[str]:
        """A sentence for each part, as people read it."""
        parts = [
            (bool(self.approvers), f"only {', '.join(self.approvers)} may move the champion"),
            (self.not_by_owner, "whoever trained or registered a version may not approve it"),
            *((True, limit.in_words()) for limit in self.must_not_worsen),
            (self.reason_required, "each move needs a reason"),
            (self.signed, "a version must be signed, and its checksums be those that were signed"),
        ]
        return [text for given, text in parts if given]


class MetricLimitBody(MetricLimitView, Body):
    """An evaluation result that must not be worse than the champion's."""


class ChampionRuleBody(ChampionRuleView, Body):
    """A rule for the champion, which replaces the one before as a whole. It has at least one part."""

    must_not_worsen: Sequence[MetricLimitBody] = Field(default_factory=list, max_length=MOST_LIMITS)
    """Results that a version must have, and that must not be worse than those of the champion."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not any(getattr(self, part) for part in ChampionRuleBody.model_fields):
            parts = ", ".join(ChampionRuleBody.model_fields)
            raise PydanticCustomError("nothing_given", "give one of {parts}; DELETE removes the rule", {"parts": parts})
        return self


class ChampionCheckView(View):
    """Whether a version may become the champion, if the caller makes it so now."""

    name: str
    version: int
    before: int | None = None
    """The present champion."""
    allowed: bool
    problems: list[str] = Field(default_factory=list)
    """Every part of the rule that is not met, and any other reason why not."""
    reason_required: bool = False
    """Whether a reason has to be given."""
    restores: bool = False
    """Whether somebody has approved it before: then its results are not compared with the champion's."""


class AliasMoveView(View):
    """That an alias was set, moved or removed."""

    alias: str
    version: int | None
    """The version that it points at since; null if it was removed."""
    before: int | None
    """The version that it pointed at before; null if there was no such alias."""
    actor: str | None
    """Who did it, the owner of the token; null if it was set in MLflow, or went with its version."""
    token_id: str | None
    """The token's id; null for whoever may not see that token."""
    reason: str
    """Why; empty if nobody has said."""
    moved_at: datetime
