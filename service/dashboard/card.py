"""Renders a model card as part of a page: Markdown without raw HTML, and pictures and files of this service only."""

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
HEADING_OFFSET: Final = 2
"""Levels by which the card's headings are lowered: the page has headings of the first two levels above it."""
LOWEST_HEADING: Final = 6


@dataclass(frozen=True)
class Card:
    """A rendered model card."""

    html: Markup
    code: dict[str, str]
    """The Python code below each heading that has some."""


def render(text: str, files: Mapping[str, str]) -> Card:
    """Render a card. ``files`` are the URLs of the version's files by path, for links and pictures in the card."""
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    markdown.add_render_rule("fence", _render_fence)
    tokens = markdown.parse(FRONT_MATTER.sub("", text))
    code = dict(_code_blocks(tokens))
    for token in tokens:
        _adapt_block(token)
        for child in token.children or ():
            _resolve_link(child, files)
    return Card(Markup(markdown.renderer.render(tokens, markdown.options, {})), code)  # noqa: S704 - it escapes


def _code_blocks(tokens: list[Token]) -> Iterator[tuple[str, str]]:
    """Headings, with the Python code below each."""
    heading = ""
    for previous, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline" and previous and previous.type == "heading_open":
            heading = token.content
        elif token.type == "fence" and token.info.strip() == "python" and heading:
            yield heading, token.content.rstrip("\n")


def _render_fence(_: Any, tokens: Sequence[Token], index: int, *__: Any) -> str:
    return f'<pre tabindex="0"><code>{escape(tokens[index].content)}</code></pre>\n'


def _adapt_block(token: Token) -> None:
    """Lower headings to fit below the page's own, and make tables focusable."""
    match token.type:
        case "heading_open" | "heading_close":
            token.tag = f"h{min(LOWEST_HEADING, int(token.tag[1:]) + HEADING_OFFSET)}"
        case "table_open":
            token.attrs["tabindex"] = 0  # lets the keyboard scroll wide tables


def _resolve_link(token: Token, files: Mapping[str, str]) -> None:
    """Point a link or picture at a file of the version. Pictures from elsewhere become text, and are not loaded."""
    if token.type == "link_open":
        token.attrs |= _link_attributes(str(token.attrs.get("href", "")), files)
    elif token.type == "image":
        url = _file_url(str(token.attrs.get("src", "")), files)
        if url:
            token.attrs |= {"src": url, "loading": "lazy"}
        else:
            token.type, token.tag, token.children = "text", "", None
            token.content = f"[picture: {token.content}]"


def _link_attributes(href: str, files: Mapping[str, str]) -> dict[str, Any]:
    if url := _file_url(href, files):
        return {"href": url, "download": ""}
    return {"href": href, "rel": "noopener noreferrer"} if urlsplit(href).netloc else {"href": href}


def _file_url(href: str, files: Mapping[str, str]) -> str | None:
    """The URL of a file of the version that a link names; None if it names something else."""
    target = urlsplit(href)
    return None if target.scheme or target.netloc else files.get(unquote(target.path).removeprefix("./"))
