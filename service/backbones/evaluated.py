"""The addendum to a version's card: what evaluations have found since it was registered."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Final

from service.auth.caller import Caller
from service.backbones import registry
from service.context.app_state import AppState
from service.jobs import evaluations
from service.jobs.evaluation_schemas import ImagesView, VersionResultView

TITLE: Final = "## Evaluated since"
ABOUT: Final = (
    "Share of the test images whose class was predicted, with its 95 % interval: the wider of that over seeds and that "
    "of the number of test images. Beside it, the same network without pretraining: *random* is frozen with untrained "
    "weights, *scratch* is trained from them."
)
HEAD: Final = "| Protocol | Top-1 | 95 % interval | Baseline | Features | Evaluation |\n|---|---|---|---|---|---|"
INTERVALS: Final = {"seeds": "mean over seeds", "test": "number of test images"}
MARKUP: Final = re.compile(r"([\\`*_{}\[\]()#+!|<>~&])")


def addendum(state: AppState, caller: Caller, name: str, reference: str) -> str:
    """The addendum to the card of a version in Markdown; empty if nothing has evaluated it. Raises the API's 404."""
    version = registry.find(state, caller, name, reference)
    with state.database.read() as session:
        return markdown(evaluations.of_version(session, version.name, version.number))


def markdown(results: Sequence[VersionResultView]) -> str:
    """Results in Markdown: a table for each set of images; empty without results."""
    if not results:
        return ""
    parts = [TITLE, ABOUT]
    for images, of_images in groupby(results, key=_images):
        rows = [_row(result) for result in of_images]
        parts += [f"### {images}", "\n".join([HEAD, *rows])]
    return "\n\n".join(parts) + "\n"


def _images(result: VersionResultView) -> str:
    """The test images of a result, and those for training where they are others."""
    test, train = result.test, result.train
    if result.held_out is not None:
        return f"{_named(test)}, of which {result.held_out:.4g} of each class is held out for the test"
    return f"{_named(test)}, trained on {_named(train)}"


def _named(images: ImagesView) -> str:
    return f"{plain(images.title)} ({images.images:,} images)"


def _row(result: VersionResultView) -> str:
    """One line of a table."""
    interval = f"{result.interval.low:.4f} to {result.interval.high:.4f} (of the {INTERVALS[result.interval.of]})"
    beside = ", ".join(f"{each.top1:.4f} ({each.weights})" for each in result.baselines) or "not measured"
    features = f"{result.pooling}, layer {result.layer}"
    cells = (f"`{result.key}`", f"{result.top1:.4f}", interval, beside, plain(features), plain(result.job))
    return f"| {' | '.join(cells)} |"


def plain(text: str) -> str:
    """A text of somebody else's in which Markdown finds no markup, on one line."""
    return MARKUP.sub(r"\\\1", " ".join(text.split()))
