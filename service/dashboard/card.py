"""A model card as a part of a page: Markdown without raw HTML, its pictures and files from the service alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

FRONT_MATTER: Final = re.compile(r"\A---\n.*?^---\n", re.DOTALL | re.MULTILINE)
LOWER: Final = 2
"""Ranks by which its headings go down: the page has a first and a second one above it."""
LOWEST: Final = 6


@dataclass(frozen=True)
class Card:
    """A card that was read."""

    html: Markup
    code: dict[str, str]
    """Python below each heading that has some, by the heading."""


def render(text: str, files: Mapping[str, str]) -> Card:
    """``files`` are the addresses of the version's files by their paths, which links and pictures may name."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("fence", _fence)
    tokens = markdown.parse(FRONT_MATTER.sub("", text))
    code = dict(_code(tokens))
    for token in tokens:
        _place(token)
        for child in token.children or ():
            _lead(child, files)
    return Card(Markup(markdown.renderer.render(tokens, markdown.options, {})), code)  # noqa: S704 - it escapes


def _code(tokens: list[Token]) -> Iterator[tuple[str, str]]:
    heading = ""
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline" and before and before.type == "heading_open":
            heading = token.content
        elif token.type == "fence" and token.info.strip() == "python" and heading:
            yield heading, token.content.rstrip("\n")


def _fence(_: Any, tokens: Sequence[Token], index: int, *__: Any) -> str:
    return f'<pre tabindex="0"><code>{escape(tokens[index].content)}</code></pre>\n'


def _place(token: Token) -> None:
    """Give a block its place on the page."""
    match token.type:
        case "heading_open" | "heading_close":
            token.tag = f"h{min(LOWEST, int(token.tag[1:]) + LOWER)}"
        case "table_open":
            token.attrs["tabindex"] = 0  # wide ones are scrolled, by keyboard too


def _lead(token: Token, files: Mapping[str, str]) -> None:
    """Let a link or a picture lead to a file of the version; pictures from elsewhere are told, and not asked for."""
    if token.type == "link_open":
        token.attrs |= _link(str(token.attrs.get("href", "")), files)
    elif token.type == "image":
        place = _file(str(token.attrs.get("src", "")), files)
        if place:
            token.attrs |= {"src": place, "loading": "lazy"}
        else:
            token.type, token.tag, token.children = "text", "", None
            token.content = f"[picture: {token.content}]"


def _link(href: str, files: Mapping[str, str]) -> dict[str, Any]:
    if place := _file(href, files):
        return {"href": place, "download": ""}
    return {"href": href, "rel": "noopener noreferrer"} if urlsplit(href).netloc else {"href": href}


def _file(href: str, files: Mapping[str, str]) -> str | None:
    parts = urlsplit(href)
    return None if parts.scheme or parts.netloc else files.get(unquote(parts.path).removeprefix("./"))
