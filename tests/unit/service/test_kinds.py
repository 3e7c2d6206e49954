"""Adding a kind touches `service/kinds`: nothing else of the control plane asks which kind a job is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import service
from service.kinds.registry import KINDS
from trainer.spec.job import SPECS, Kind

SERVICE = Path(service.__file__).parent
ALLOWED = ("kinds", "dashboard", "client", "db/migrations")
"""Migrations are of the tables as they were."""
SPEC_CLASSES = {spec.__name__ for spec in SPECS.values()}


def asks_for_a_kind(node: ast.AST) -> bool:
    """Whether it names a kind, compares one with text, or tells specs apart by their class."""
    match node:
        case ast.Attribute(value=ast.Name("Kind"), attr=attr):
            return attr in Kind.__members__
        case ast.Compare():
            sides = [node.left, *node.comparators]
            kinds = any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides)
            return kinds and any(isinstance(side, ast.Constant) for side in sides)
        case ast.Call(func=ast.Name("isinstance"), args=[_, classes]):
            return any(isinstance(each, ast.Name) and each.id in SPEC_CLASSES for each in ast.walk(classes))
    return False


def questions(source: str) -> Iterator[int]:
    """Lines that ask for a kind."""
    return (node.lineno for node in ast.walk(ast.parse(source)) if asks_for_a_kind(node))


def test_only_kinds_tell_kinds_apart():
    files = [path for path in SERVICE.rglob("*.py") if not str(path.relative_to(SERVICE)).startswith(ALLOWED)]
    assert len(files) > 50
    found = [f"{path.relative_to(SERVICE)}:{line}" for path in files for line in questions(path.read_text())]
    assert found == []


def test_such_a_question_is_noticed():
    for source in ("job.kind == Kind.SEARCH", "job.kind != 'publish'", "isinstance(spec, PretrainSpec | SearchSpec)"):
        assert list(questions(source)) == [1], source
    assert list(questions("Job.kind == self.kind")) == []


def test_every_kind_of_spec_has_its_class():
    assert set(KINDS) == set(SPECS)
    assert {name: kind.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
