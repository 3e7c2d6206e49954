"""How the command line shows how far a job is."""

from __future__ import annotations

from typing import Final

from service.client.tables import duration, number
from service.jobs.schemas import (
    AnyProgress,
    EmbeddingProgress,
    EvaluationProgress,
    ImportProgress,
    InspectionProgress,
    JobView,
    Progress,
    SearchProgress,
)

LEAST_IMPORTANT_FIRST: Final = ("measuring", "wait", "pruned", "rate", "loss", "running", "failed", "eta", "best")
"""Parts of a progress line, in the order in which a narrow terminal drops them."""


def done(view: JobView) -> str:
    """How far a job is, in a word or two."""
    progress = view.progress
    if isinstance(progress, SearchProgress):
        return _trials_done(progress)
    if isinstance(progress, InspectionProgress | EmbeddingProgress):
        return _images(progress)
    if isinstance(progress, ImportProgress):
        return _phase(progress)
    if isinstance(progress, EvaluationProgress):
        return f"{progress.done}/{progress.total} measured"
    return f"{progress.epoch:.1f}/{progress.epochs} epochs" if progress else "-"


def _phase(progress: ImportProgress) -> str:
    return "imported" if progress.done == progress.phases else progress.phase


def _trials_done(progress: SearchProgress) -> str:
    ended = progress.trials.ended
    # Repeats of the best trials are not part of the budget.
    return f"{ended}/{progress.budget} trials" if ended <= progress.budget else f"{ended} trials"


def share_done(progress: AnyProgress | None) -> float:
    """How much of a job is done, 0..1."""
    if progress is None:
        return 0.0
    if isinstance(progress, SearchProgress):
        return min(1.0, progress.trials.ended / progress.budget)
    if isinstance(progress, EvaluationProgress):
        return progress.done / progress.total
    if isinstance(progress, InspectionProgress | EmbeddingProgress):
        return _images_done(progress) / progress.total if progress.total else 1.0
    if isinstance(progress, ImportProgress):
        return progress.done / progress.phases
    return min(1.0, progress.epoch / progress.epochs)


def line(view: JobView, width: int | None = None) -> str:
    """Epoch, loss, rates and remaining time, or a search's trials and the best of them, as far as they are known.

    Where that is longer than ``width`` characters, the least important parts are left out.
    """
    progress = view.progress
    if progress is None:
        return ""
    if isinstance(progress, ImportProgress):
        return _phase(progress)
    if isinstance(progress, EvaluationProgress):
        parts = _evaluation_parts(progress)
    elif isinstance(progress, InspectionProgress | EmbeddingProgress):
        parts = _image_parts(progress)
    else:
        parts = _search_parts(progress) if isinstance(progress, SearchProgress) else _training_parts(progress)
    if progress.eta_s is not None and not view.state.terminal:
        parts["eta"] = f"ETA {duration(progress.eta_s)}"
    for name in LEAST_IMPORTANT_FIRST:
        if width is not None and len("  ".join(parts.values())) > width:
            parts.pop(name, None)
    return "  ".join(parts.values())


def _images_done(progress: InspectionProgress | EmbeddingProgress) -> int:
    return progress.inspected if isinstance(progress, InspectionProgress) else progress.embedded


def _images(progress: InspectionProgress | EmbeddingProgress) -> str:
    return f"{_images_done(progress):,}/{progress.total:,} images"


def _image_parts(progress: InspectionProgress | EmbeddingProgress) -> dict[str, str]:
    parts = {"images": _images(progress)}
    if progress.images_per_s is not None:
        parts["rate"] = f"{progress.images_per_s:.0f} images/s"
    return parts


def _evaluation_parts(progress: EvaluationProgress) -> dict[str, str]:
    parts = {"done": f"{progress.done}/{progress.total} measured"}
    if progress.measuring:
        parts["measuring"] = progress.measuring
    return parts


def _training_parts(progress: Progress) -> dict[str, str]:
    parts = {"epoch": f"epoch {progress.epoch:.1f}/{progress.epochs}"}
    if progress.loss is not None:
        parts["loss"] = f"loss {progress.loss:.4f}"
    if progress.images_per_s is not None:
        parts["rate"] = f"{progress.images_per_s:.0f} images/s"
    if progress.data_wait_fraction is not None:
        parts["wait"] = f"data wait {progress.data_wait_fraction:.0%}"
    return parts


def _search_parts(progress: SearchProgress) -> dict[str, str]:
    parts = {"trials": _trials_done(progress)}
    counts = {"running": progress.trials.running, "pruned": progress.trials.pruned, "failed": progress.trials.failed}
    parts |= {name: f"{count} {name}" for name, count in counts.items() if count}
    if progress.best_value is not None:
        parts["best"] = f"best {number(progress.best_value)} (trial {progress.best_trial})"
    return parts
