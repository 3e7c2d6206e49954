"""How the command line shows backbones to people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table

from service.backbones.schemas import BackboneDetailView, BackboneView, VersionDeletionView, VersionView
from service.client.tables import fields, size, table, when


def backbones(found: Iterable[BackboneView], sort: str | None = None) -> Table:
    """By what they are sorted by, that result too."""
    key = (sort or "").removeprefix("-")
    shown = [key] if "/" in key else []
    return table(
        ("NAME", "MAIN", "LATEST", "VERSIONS", "ALIASES", *(name.upper() for name in shown), "UPDATED"),
        (
            (
                b.name,
                str(b.main_version),
                str(b.latest_version),
                str(len(b.versions)),
                ", ".join(f"{alias}:{number}" for alias, number in b.aliases.items()) or "-",
                *(f"{b.metrics[name]:.4g}" if name in b.metrics else "-" for name in shown),
                when(b.updated_at),
            )
            for b in found
        ),
    )


def backbone(found: BackboneDetailView) -> RenderableType:
    """Every version of it, with its results."""
    results = sorted({key for each in found.details for key in each.metrics})
    versions = table(
        ("VERSION", "ALIASES", "JOB", "STEP", "FORMATS", "CREATED", *results),
        (
            (
                str(each.version),
                ", ".join(each.aliases) or "-",
                each.trained_by or each.job_id,
                "-" if each.checkpoint_step is None else f"{each.checkpoint_step:,}",
                ", ".join(each.formats) or "-",
                when(each.created_at),
                *(f"{each.metrics[key]:.4g}" if key in each.metrics else "-" for key in results),
            )
            for each in found.details
        ),
    )
    head = fields([("backbone", found.name), ("pulled by default", f"{found.name}:{found.main_version}")])
    return Group(head, "", versions)


def version(found: VersionView) -> RenderableType:
    other_job = [("trained by", found.trained_by)] if found.trained_by not in {"", found.job_id} else []
    known = [
        ("step", None if found.checkpoint_step is None else f"{found.checkpoint_step:,}"),
        ("epochs", None if found.epochs is None else f"{found.epochs:g}"),
        ("method", found.method),
        ("network", found.network),
        ("dataset", found.dataset_fingerprint),
        ("code", found.code_version),
        ("formats", ", ".join(found.formats)),
        ("aliases", ", ".join(found.aliases)),
        ("commit", found.commit),
    ]
    head = fields(
        [
            ("backbone", f"{found.name}:{found.version}"),
            ("job", found.job_id),
            *other_job,
            ("created", when(found.created_at)),
            *((name, value) for name, value in known if value),
            *((key, f"{value:.4g}") for key, value in sorted(found.metrics.items())),
        ]
    )
    files = table(("FILE", "SIZE", "SHA256"), ((f.path, size(f.size), f.sha256) for f in found.files))
    return Group(head, "", files)


def version_deletion(found: VersionDeletionView) -> RenderableType:
    """What goes with a version."""
    return fields(
        [
            ("backbone", f"{found.name}:{found.version}"),
            ("job", found.job_id),
            ("files", f"{found.files:,}, {size(found.bytes)}"),
            ("in", found.artifact_uri),
            ("aliases", ", ".join(found.aliases) or "none"),
        ]
    )
