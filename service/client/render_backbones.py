"""How the command line shows backbones to people."""

from __future__ import annotations

import json
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.table import Table

from service.backbones.comparison_schemas import ComparisonView, EvaluationPairView
from service.backbones.schemas import (
    BackboneDetailView,
    BackboneView,
    VersionDeletionView,
    VersionSummaryView,
    VersionView,
)
from service.backbones.use_schemas import OwnerSpaceView, VersionUserView
from service.client.console import Text
from service.client.tables import fields, size, table, when
from service.client.transport import label_texts


def backbones(views: Iterable[BackboneView], sort: str | None = None) -> Table:
    """Backbones, with the evaluation result that they are sorted by."""
    key = (sort or "").removeprefix("-")
    shown = [key] if "/" in key else []
    return table(
        (
            "NAME",
            "MAIN",
            "LATEST",
            "VERSIONS",
            "ALIASES",
            "OWNER",
            "LABELS",
            *(name.upper() for name in shown),
            "DOWNLOADS",
            "LAST USED",
            "SIZE",
            "UPDATED",
        ),
        (
            (
                b.name,
                f"{b.main_version} gone" if b.main_version in b.gone else str(b.main_version),
                str(b.latest_version),
                f"{len(b.versions)}, {len(b.gone)} gone" if b.gone else str(len(b.versions)),
                ", ".join(f"{alias}:{number}" for alias, number in b.aliases.items()) or "-",
                b.owner or "-",
                ", ".join(label_texts(b.labels)) or "-",
                *(f"{b.metrics[name]:.4g}" if name in b.metrics else "-" for name in shown),
                *_use(b),
                when(b.updated_at),
            )
            for b in views
        ),
    )


def backbone(view: BackboneDetailView) -> RenderableType:
    """A backbone with all its versions and their results."""
    results = sorted({key for each in view.details for key in each.metrics})
    expires = ("EXPIRES",) if any(each.expires_at for each in view.details) else ()
    versions = table(
        (
            *("VERSION", "ALIASES", "JOB", "STEP", "FORMATS", "DOWNLOADS", "LAST USED", "SIZE", "CREATED"),
            *expires,
            *results,
        ),
        (
            (
                f"{each.version} gone" if each.state == "gone" else str(each.version),
                ", ".join(each.aliases) or "-",
                each.trained_by or each.job_id,
                "-" if each.checkpoint_step is None else f"{each.checkpoint_step:,}",
                ", ".join(each.formats) or "-",
                *_use(each),
                when(each.created_at),
                *(when(each.expires_at) if each.expires_at else "-" for _ in expires),
                *(f"{each.metrics[key]:.4g}" if key in each.metrics else "-" for key in results),
            )
            for each in view.details
        ),
    )
    head = fields(
        [
            ("backbone", view.name),
            ("pulled by default", f"{view.name}:{view.main_version}"),
            ("visible to", visible_to(view)),
            *_texts(view),
            ("downloads", downloads(view)),
            ("size", _size(view)),
            *([("champion's rule", "; ".join(view.champion_rule.in_words()))] if view.champion_rule else []),
        ]
    )
    return Group(head, "", versions)


def visible_to(view: BackboneView) -> str:
    """Who sees a backbone, besides operators and admins."""
    return "all" if view.visibility == "all" else ", ".join(["its owners", *view.readers])


def _texts(view: BackboneView | VersionSummaryView) -> list[tuple[str, RenderableType]]:
    """What people have written about a backbone or a version, and who owns it."""
    known = [("owner", view.owner), ("labels", ", ".join(label_texts(view.labels)))]
    described = [("description", Text(view.description))] if view.description else []
    return [*((name, value) for name, value in known if value), *described]


def _use(view: BackboneView | VersionSummaryView) -> tuple[str, str, str]:
    """The cells DOWNLOADS, LAST USED and SIZE."""
    return f"{view.downloads:,}", str(view.last_used_on or "-"), _size(view)


def _size(view: BackboneView | VersionSummaryView) -> str:
    return "-" if view.bytes is None else size(view.bytes)


def downloads(view: BackboneView | VersionSummaryView) -> str:
    """How often something was downloaded, and when it was last used."""
    often = f"{view.downloads:,}" if view.downloads else "none"
    return f"{often}, last used on {view.last_used_on}" if view.last_used_on else often


def users(views: Iterable[VersionUserView]) -> Table:
    """Who has used a version."""
    rows = ((each.owner, f"{each.downloads:,}", str(each.last_used_on), ", ".join(each.formats)) for each in views)
    return table(("OWNER", "DOWNLOADS", "LAST USED", "FORMATS"), rows)


def space(views: Iterable[OwnerSpaceView]) -> Table:
    """What the backbones of each owner take, with the sum of several owners."""
    found = list(views)
    rows = [(each.owner, each.backbones, each.versions, each.bytes, each.unmeasured) for each in found]
    if len(rows) > 1:
        rows.append(("all", *(sum(values) for values in list(zip(*rows, strict=True))[1:])))
    return table(
        ("OWNER", "BACKBONES", "VERSIONS", "SIZE"),
        (
            (owner, f"{number:,}", f"{versions:,}", size(total) + (f" and {missing:,} unmeasured" if missing else ""))
            for owner, number, versions, total, missing in rows
        ),
    )


def version(view: VersionView) -> RenderableType:
    """A version with its files."""
    files = table(("FILE", "SIZE", "SHA256"), ((f.path, size(f.size), f.sha256) for f in view.files))
    further = [("commit", view.commit), ("signature", signature(view))]
    return Group(summary(view, further), "", files)


def summary(view: VersionSummaryView, further: Iterable[tuple[str, str]] = ()) -> RenderableType:
    """What a version is and where it comes from."""
    trained_by = [("trained by", view.trained_by)] if view.trained_by not in {"", view.job_id} else []
    known = [
        ("step", None if view.checkpoint_step is None else f"{view.checkpoint_step:,}"),
        ("epochs", None if view.epochs is None else f"{view.epochs:g}"),
        ("method", view.method),
        ("fine-tuned from", view.fine_tuned_from),
        ("classes", f"{len(view.classes)}: {', '.join(view.classes)}" if view.classes else ""),
        ("origin", " ".join(filter(None, (view.origin, view.origin_url)))),
        ("licence", view.license),
        ("network", view.network),
        ("dataset", view.dataset_fingerprint),
        ("code", view.code_version),
        ("formats", ", ".join(view.formats)),
        ("aliases", ", ".join(view.aliases)),
        ("expires", when(view.expires_at) if view.expires_at else ""),
        *further,
    ]
    return fields(
        [
            (view.type, f"{view.name}:{view.version}"),
            ("job", view.job_id),
            *trained_by,
            ("created", when(view.created_at)),
            *_texts(view),
            ("downloads", downloads(view)),
            ("size", _size(view)),
            *((name, value) for name, value in known if value),
            *((key, f"{value:.4g}") for key, value in sorted(view.metrics.items())),
        ]
    )


def signature(view: VersionView) -> str:
    """Who has signed a version's checksums."""
    if view.signature is None:
        return "not signed"
    broken = "" if view.signature.intact else "; the checksums were changed since"
    return f"key {view.signature.key_id}, {when(view.signature.signed_at)}{broken}"


def comparison(view: ComparisonView) -> RenderableType:
    """Two versions side by side."""
    sides = (view.first, view.second)
    heads = [f"{side.version.name}:{side.version.version}" for side in sides]
    same = {True: "the same images", False: "other images", None: "unknown"}[view.same_dataset]
    rows = [
        ("formats", *(", ".join(side.sizes) or "-" for side in sides), ""),
        ("size", *("-" if side.bytes is None else size(side.bytes) for side in sides), ""),
        ("dataset", *(side.version.dataset_fingerprint or "-" for side in sides), same),
        *((each.key, _number(each.first), _number(each.second), _signed(each.difference)) for each in view.metrics),
        *(_evaluated(each) for each in view.evaluations),
    ]
    spec = table(("SPEC", *heads), ((each.path, _text(each.first), _text(each.second)) for each in view.spec or ()))
    same_spec = "the specs cannot be compared" if view.spec is None else "the specs are the same"
    notes = [f"{head}: {note}" for head, side in zip(heads, sides, strict=True) for note in side.notes]
    return Group(table(("", *heads, "DIFFERENCE"), rows), "", spec if view.spec else same_spec, *notes)


def _evaluated(pair: EvaluationPairView) -> tuple[str, str, str, str]:
    """A line of what evaluations have found about two versions."""
    sides = (None if each is None else each.top1 for each in (pair.first, pair.second))
    first, second = map(_number, sides)
    if pair.differs:
        apart = f" with other {', '.join(pair.differs)}"
    else:
        apart = "" if pair.difference is None else " apart" if pair.apart else " intervals overlap"
    return f"{pair.key} on {pair.test.title}", first, second, f"{_signed(pair.difference)}{apart}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4g}"


def _text(value: object) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def version_deletion(view: VersionDeletionView) -> RenderableType:
    """What is deleted with a version."""
    return fields(
        [
            ("backbone", f"{view.name}:{view.version}"),
            ("job", view.job_id),
            ("files", f"{view.files:,}, {size(view.bytes)}"),
            ("in", view.artifact_uri),
            ("used by", ", ".join(f"{each.owner} (last on {each.last_used_on})" for each in view.used_by) or "nobody"),
            ("aliases", ", ".join(view.aliases) or "none"),
        ]
    )
