"""Text of users stands in an element of its own, so that a mark of direction in old data reorders nothing around it."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from service_fakes import SPEC, add_job, spec_with

MARK = "\u202e"
OLD = f"old{MARK}data"
BLOCKS = {"code", "textarea", "option"}
"""Elements whose text is a paragraph of its own: code is in `pre`, and others cannot hold elements."""
VOID = {"meta", "link", "img", "input", "br", "use", "rect"}


class Page(HTMLParser):
    """The texts of a page that have the mark, each with the elements around it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._open: list[str] = []
        self.marked: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        del attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if MARK in data:
            self.marked.append(list(self._open))


@pytest.fixture
def pages(browsers, database):
    """The pages that show a job, old as it is, in each of the places where there are jobs."""
    fields = {"name": OLD, "message": OLD, "notes": OLD, "reason": "worker_failed", "labels": {"team": "vision"}}
    spec = spec_with(name=OLD)
    one, other = (add_job(database, "failed", spec, owner="alice", **fields) for _ in range(2))
    add_job(database, "running", spec, owner="alice", **fields)
    add_job(database, "queued", spec, owner="alice", **fields)
    space = {"optimization.base_lr": {"type": "float", "low": 1, "high": 2}}
    search = {"kind": "search", "base": SPEC, "space": space, "scheduler": {"name": "none"}}
    found = add_job(database, "failed", search, owner="alice", **fields)
    paths = ["/", "/jobs", "/searches", f"/jobs/{one}/overview", f"/jobs/{one}/events", f"/jobs/{one}/spec",
             f"/jobs/compare?job={one}&job={other}", f"/searches/{found}/logs", "/cluster"]  # fmt: skip
    return {path: browsers.alice.get(path) for path in paths}


def test_marks_of_direction_stay_in_their_own_element(pages):
    for path, page in pages.items():
        assert page.status_code == 200, path
        marked = Page(page.text).marked
        assert [each for each in marked if not {"bdi", *BLOCKS} & set(each)] == [], path
        assert not any("title" in each for each in marked), "a title has no elements: there it is written out"
    for path in ("/", "/jobs", "/searches"):
        assert any("bdi" in each for each in Page(pages[path].text).marked), path
    heading = next(page for path, page in pages.items() if path.endswith("/overview")).text
    assert f"<h1><bdi>{OLD}</bdi>" in heading
    assert r"<title>old\u202edata" in heading


def test_a_spec_shown_as_yaml_has_its_marks_written_out(pages):
    (spec,) = [page.text for path, page in pages.items() if path.endswith("/spec")]
    assert MARK not in spec[spec.index("<pre") : spec.index("</pre>")]
    assert r"\u202E" in spec
