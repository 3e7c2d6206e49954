"""YAML that JSON could not hold is refused at its line and column; all other YAML means what JSON means."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.spec.base import SpecError, apply_overrides, read_document, read_yaml
from trainer.spec.yaml_text import DEEPEST, dump, load


def laughs(line: str) -> str:
    """A document that names lists of lists of lists: 9**8 values once they are written out."""
    names = "abcdefgh"
    rows = [line.format(new=new, old=", ".join([f"*{old}"] * 9)) for old, new in pairwise(names)]
    return "\n".join(["a: &a {x: 1}", *rows])


REFUSED = [
    ("name: 2024-05-01", "name", "line 1, column 7", "put it in quotes"),
    ("name: 2024-05-01T10:00:00Z", "name", "line 1, column 7", "put it in quotes"),
    ("a:\n  b: !!set {x, y}", "a.b", "line 2, column 6", "!!set"),
    ("a: !!binary aGVsbG8=", "a", "line 1, column 4", "!!binary"),
    ("a: !!omap [x: 1]", "a", "line 1, column 4", "!!omap"),
    ("a: !!python/object/apply:os.getcwd []", "a", "line 1, column 4", "!!python"),
    ("a: [1, .nan]", "a.1", "line 1, column 8", "finite"),
    ("a: .inf", "a", "line 1, column 4", "finite"),
    ("a: -1e999", "a", "line 1, column 4", "finite"),
    ("a: 1:30", "a", "line 1, column 4", "quotes"),
    ("a: 010", "a", "line 1, column 4", "quotes"),
    ("a: " + "9" * 5000, "a", "line 1, column 4", "5000 digits"),
    ("a: &x\n  - *x", "a.0", "line 1, column 4", "alias of itself"),
    ("a: &x {b: *x}", "a.b", "line 1, column 4", "alias of itself"),
    ("a: *none", "", "line 1, column 4", "none"),
    ("[" * 3000, "", f"line 1, column {DEEPEST + 1}", "too deeply"),
    ("{a: " * 3000, "", "line 1, column ", "too deeply"),
    ("- " * 3000, "", "line 1, column ", "too deeply"),
    (laughs("{new}: &{new} [{old}]"), "", "line 1, column ", "100000 values"),
    (laughs("{new}: &{new} {{<<: [{old}]}}"), "", "line 1, column ", "100000 values"),
    ("a: 1\nb: 2\na: 3", "a", "line 3, column 1", "twice"),
    ('{"a": {"b": 1, "b": 1}}', "a.b", "line 1, column 16", "twice"),
    ("7: x", "", "line 1, column 1", "quotes"),
    ("on: x", "", "line 1, column 1", "quotes"),
    ("? [a]\n: b", "", "line 1, column 3", "not a list"),
    ("a:\n\tb: 1", "", "line 2, column 1", "\\t"),
    ("a: 1\nb: \x1b[31m", "", "line 2, column 4", "U+001B"),
    ('a: "\\ud83d"', "a", "line 1, column 4", "surrogate"),
    ("a: 1\n---\nb: 2", "", "line 2, column 1", "another document"),
    ("<<: 5", "", "line 1, column 5", "<<"),
]


@pytest.mark.parametrize(("text", "field", "place", "words"), REFUSED, ids=[case[0][:24] for case in REFUSED])
def test_what_is_not_json_is_refused_at_its_place(text, field, place, words):
    with pytest.raises(SpecError) as caught:
        read_yaml(text)
    (problem,) = caught.value.problems
    assert problem.message.startswith(place)
    assert words in problem.message
    assert not field or problem.field == field


def test_an_override_is_as_strict_and_names_its_field():
    for override, field in (
        ("seed=2024-05-01", "seed"),
        ("model={depth: .nan}", "model.depth"),
        ("a=" + "[" * 999, "a"),
    ):
        with pytest.raises(SpecError) as caught:
            apply_overrides({}, [override])
        assert [each.field for each in caught.value.problems] == [field]


def test_aliases_and_merged_fields_are_written_out():
    text = "one: &x {a: 1, b: [2]}\ntwo: {<<: *x, a: 3}\nthree: [*x, *x]\nfour: {<<: [{c: 4}, *x]}"
    found = read_document(text)
    one = {"a": 1, "b": [2]}
    assert found == {"one": one, "two": {"a": 3, "b": [2]}, "three": [one, one], "four": {"c": 4, **one}}
    found["three"][0]["b"].append(5)
    assert found["one"] == one, "each is a copy of its own"


@pytest.mark.parametrize(
    "text",
    [
        '{\n\t"a":\t1,\n\t"b": [\t2,\t{"c": 3}\t]\n}',
        "{a: 1,\r\n\tb: [2, {c:\t3}]}\r\n",
        "\ufeffa: 1\r\nb:\r\n- 2\r\n- c: 3\r\n",
    ],
)
def test_tabs_within_brackets_and_line_ends_of_any_system_are_read(text):
    assert read_document(text) == {"a": 1, "b": [2, {"c": 3}]}


@pytest.mark.parametrize("text", ["a: " + "1:" * 9999 + "1", "a: -1" + "0" * 9999 + ".0", "9" * 9999 + ": x"])
def test_a_message_does_not_repeat_a_long_value(text):
    with pytest.raises(SpecError) as caught:
        read_yaml(text)
    assert len(str(caught.value)) < 300


def test_as_deep_as_is_allowed_is_read():
    text = "[" * DEEPEST + "1" + "]" * DEEPEST
    assert read_yaml(text) == json.loads(text)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("C",), exclude_characters="\u2028\u2029"))
    | st.sampled_from(["1e4", "no", "2024-05-01", "1:30", "007", "0x1f", "=", "<<", "~", "", ".nan", "- a", "a: b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab1-:# ~=<", max_size=4), inner, max_size=4),
    max_leaves=12,
)


@given(values)
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_read_again(value):
    assert load(dump(value))[0] == value
    assert load(json.dumps(value))[0] == value, "JSON is YAML"
