"""The terminal. Text from outside (names of files, log lines, tags, errors) shows all that it has, and moves no cursor:
control characters and marks of direction are written out, as ``\\x1b`` or ``\\u202e``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import rich.console
import rich.text
import typer
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from trainer.spec.text import visible, visible_json


class Text(rich.text.Text):
    """rich's text with misleading characters written out; rich itself drops some of them and passes others on."""

    def __init__(self, text: str = "", *args: Any, **options: Any) -> None:
        super().__init__(visible(text), *args, **options)

    def append(self, text: rich.text.Text | str, style: Any = None) -> Text:
        """Add a text, or a string, which is written out too."""
        super().append(visible(text) if isinstance(text, str) else text, style)
        return self


class Console(rich.console.Console):
    """A terminal that writes out the misleading characters of everything that is printed on it."""

    def render_str(self, text: str, **options: Any) -> rich.text.Text:
        """A string as text, before its width is measured."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything: rich's own commands to the terminal stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def echo_json(text: str) -> None:
    """Print JSON on standard output: the same JSON, with misleading characters escaped."""
    typer.echo(visible_json(text))
