"""Types and fields that the specs of several kinds of job share."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field

from trainer.spec.base import SpecModel

Auto = Literal["auto"]
MOST_EPOCHS: Final = 1_000_000
Epochs = Annotated[int, Field(ge=1, le=MOST_EPOCHS)]
Interval = Annotated[int, Field(ge=1, le=10**9)]
"""Epochs between two events; a number beyond all epochs means never."""
BatchSize = Annotated[int, Field(ge=1, le=2**24)]
"""Images that are processed together."""
Workers = Annotated[int, Field(ge=1, le=10_000)]
CpuCores = Annotated[int, Field(ge=1, le=4096)]
Kept = Annotated[int, Field(ge=1, le=10**9)]
"""How many of several things are kept; a number beyond all that there are means all of them."""
Heads = Annotated[int, Field(ge=1, le=2**14)]
"""Heads of attention."""
Hours = Annotated[float, Field(gt=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not _LABEL.fullmatch(key) or not _LABEL.fullmatch(value):
            raise ValueError(f"{key}: {value} - use up to 63 letters, digits and . _ / - in both")
    return labels


Labels = Annotated[dict[str, str], Field(max_length=32), AfterValidator(_check_labels)]
"""Names and values that users choose."""
Priority = Annotated[int, Field(ge=-100, le=100)]


class RetrySpec(SpecModel):
    """Retries after failures."""

    max_failures: int = Field(3, ge=0, le=1000)
    """Attempts after failures; each resumes from the last checkpoint."""
