"""The page of two versions side by side. Like its route in the API, it has no name that a backbone could have."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response

from service.backbones import comparison
from service.backbones.comparison_schemas import CurvePairView
from service.dashboard.site import BackbonesPage, PageRoute

router = APIRouter(include_in_schema=False, route_class=PageRoute)

COLOURS: Final = ("#3b7ddd", "#d9822b")
"""Of the first version and the second."""
Name = Annotated[str | None, Query(max_length=600)]


@router.get("/backbone-comparison")
def compare(page: BackbonesPage, of: Name = None, other: Annotated[Name, Query(alias="with")] = None) -> Response:
    """Two versions side by side; without them, a form that asks for them."""
    found, trouble = None, None
    if of and other:
        found, trouble = page.attempt(lambda: comparison.compare(page.state, page.caller, of, other))
    figures = []
    if found:
        titles = [f"{side.version.name}:{side.version.version}" for side in (found.first, found.second)]
        figures = [(curve.key, _figure(curve, titles)) for curve in found.curves]
    context: dict[str, Any] = {"of": of or "", "other": other or "", "colours": COLOURS}
    return page.render("backbones/compare.html", charts=True, found=found, trouble=trouble, figures=figures, **context)


def _figure(curve: CurvePairView, titles: list[str]) -> dict[str, Any]:
    """The curves of one metric in one figure, for charts.js."""
    traces = [
        {
            "type": "scatter", "mode": "lines+markers" if len(points) < 2 else "lines", "name": title,
            "x": [x for x, _ in points], "y": [y for _, y in points], "line": {"color": colour},
        }
        for points, title, colour in zip((curve.first, curve.second), titles, COLOURS, strict=True)
        if points
    ]  # fmt: skip
    return {"data": traces, "layout": {"xaxis": {"title": {"text": "epoch"}}, "yaxis": {"title": {"text": curve.key}}}}
