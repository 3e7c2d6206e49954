"""The result of an inspection on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rich.console import Group, RenderableType

from service.client.console import Text
from service.client.tables import fields, size
from trainer.protocol.inspection import Inspection, Quartiles
from trainer.spec import yaml_text

SHOWN: Final = 8
"""The most classes, suffixes and reasons that are listed."""


def inspection(found: Inspection) -> RenderableType:
    """Figures, then warnings, then the settings that fit."""
    readable = sum(found.formats.values())
    rows: list[tuple[str, RenderableType]] = [
        ("images", f"{found.images:,}" + _of_sample(found)),
        ("readable", f"{readable:,} of {found.inspected:,}, {size(found.bytes)}"),
        ("formats", _counts(found.formats)),
    ]
    if found.sizes:
        rows += [("heights", _quartiles(found.sizes.height)), ("widths", _quartiles(found.sizes.width))]
    rows += [
        ("channels", _counts(found.channels)),
        ("bits", _counts(found.bits)),
        ("values", f"{found.value_range[0]:g} to {found.value_range[1]:g}" if found.value_range else "none"),
        ("scale", ", ".join(f"{kind} {low:g} to {high:g}" for kind, (low, high) in found.scale.items()) or "none"),
        ("labels", f"{found.class_count} classes from {found.labels_from}" if found.class_count else "none"),
    ]
    if found.classes:
        rows.append(("classes", _counts(found.classes, found.class_count)))
    if found.unreadable:
        reasons = [f"{each.count:,}: {reason} (first: {each.first})" for reason, each in found.unreadable.items()]
        rows.append(("unreadable", Text("\n".join(reasons[:SHOWN]), style="red")))
    if found.passed_over:
        rows.append(("passed over", _counts(found.passed_over)))
    rows.append(("duplicates", f"{found.duplicates:,}"))
    if found.splits:
        places = {name: " ".join((each.uri, *each.include)) for name, each in found.splits.items()}
        lines = [f"{name}: {each.images:,} in {places[name]}" for name, each in found.splits.items()]
        rows.append(("splits", "\n".join(lines)))
    if found.images_per_s_per_core:
        rows.append(("decoding", f"{found.images_per_s_per_core:,.0f} images/s on each core"))
    if found.fingerprint:
        rows.append(("fingerprint", found.fingerprint))
    parts: list[RenderableType] = [fields(rows)]
    parts += [Text(f"\n! {warned.message}", style="yellow") for warned in found.warnings]
    parts.append(Text(f"\nsettings that fit:\n{yaml_text.dump(found.proposed).rstrip()}"))
    return Group(*parts)


def _of_sample(found: Inspection) -> str:
    return f", of which a sample of {found.inspected:,} was decoded" if found.inspected < found.images else ""


def _counts(counts: Mapping[str, int] | Mapping[int, int], total: int | None = None) -> str:
    some = ", ".join(f"{name}: {count:,}" for name, count in list(counts.items())[:SHOWN]) or "none"
    more = (total or len(counts)) - SHOWN
    return f"{some}, {more:,} more" if more > 0 else some


def _quartiles(found: Quartiles) -> str:
    if found.least == found.greatest:
        return str(found.least)
    return (
        f"{found.least} to {found.greatest}, half of them {found.lower_quartile} to {found.upper_quartile}, "
        f"median {found.median}"
    )
