"""Corruption errors relative to another evaluation.

From Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261), who divide by AlexNet's errors; here they are those of any
evaluation on the same test images, which the result names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np


def mean_corruption_error(
    errors: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]] | None = None
) -> float:
    """mCE, from 0 on; smaller is better, and 1 is as robust as the reference.

    ``errors`` has for each corruption the error (1 - accuracy) at each severity; so has ``reference``. The sum over the
    severities is divided by the reference's, and the quotients are averaged over the corruptions. Without a reference
    it is the plain mean of the errors, in 0..1. Raises `ValueError` if the two do not have the same corruptions and
    severities, or the reference makes no error under a corruption.
    """
    always_wrong = {name: [1.0] * len(values) for name, values in errors.items()}
    return relative_corruption_error(errors, 0.0, always_wrong if reference is None else reference, 0.0)


def relative_corruption_error(
    errors: Mapping[str, Sequence[float]],
    clean: float,
    reference: Mapping[str, Sequence[float]],
    reference_clean: float,
) -> float:
    """Relative mCE: the same of what each corruption adds to the error without corruption.

    ``clean`` and ``reference_clean`` are the two errors on the uncorrupted test images. Raises `ValueError` as
    `mean_corruption_error` does, also if a corruption adds nothing to the reference's error.
    """
    _check(errors, reference)
    quotients = []
    for name, own in errors.items():
        added, added_to_reference = (
            math.fsum(at_severity - base for at_severity in values)
            for values, base in ((own, clean), (reference[name], reference_clean))
        )
        if added_to_reference <= 0:
            raise ValueError(
                f"the reference's error does not grow under {name}, so nothing can be divided by it: name another "
                "reference"
            )
        quotients.append(added / added_to_reference)
    return float(np.mean(quotients))


def _check(errors: Mapping[str, Sequence[float]], reference: Mapping[str, Sequence[float]]) -> None:
    if not errors or errors.keys() != reference.keys():
        differing = sorted(errors.keys() ^ reference.keys()) or ["none at all"]
        raise ValueError(f"both evaluations need the same corruptions; they differ in: {', '.join(differing)}")
    for name, own in errors.items():
        if len(own) != len(reference[name]) or not len(own):
            raise ValueError(f"{name} has {len(own)} severities, the reference {len(reference[name])}: use the same")
        if not all(0 <= value <= 1 for value in (*own, *reference[name])):
            raise ValueError(f"{name} has an error that is not in 0..1")
