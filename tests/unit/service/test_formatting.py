"""How the dashboard writes numbers and times."""

from datetime import timedelta

import pytest

from service.dashboard.formatting import ago, coded, duration, full, number
from service.db.tables import now
from service.http.json_text import flat


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.123456789, "0.123457"),
        (1234.5678, "1234.57"),
        (0.00001234, "1.234e-05"),
        (12345678.9, "1.23457e+07"),
        (7, "7"),
        (12345, "12 345"),
        (True, "true"),
        ("cosine", "cosine"),
    ],
)
def test_numbers_have_six_significant_digits(value, text):
    assert number(value) == text


def test_the_whole_of_a_number_is_in_its_tooltip():
    assert full(0.123456789012) == "0.123456789012"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.4, "0 s"), (59, "59 s"), (184, "3 m 04 s"), (7500, "2 h 05 m"), (4 * 86_400 + 7200, "4 d 02 h")],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text


def test_moments_are_told_from_now():
    assert ago(now() - timedelta(seconds=90)) == "1 min ago"
    assert ago(now() - timedelta(days=2, hours=3)) == "2 d ago"
    assert ago(now() + timedelta(hours=5, seconds=5)) == "in 5 h"


def test_a_spec_is_flat_by_dotted_paths():
    spec = {"method": {"teacher": {"momentum": 0.996}, "name": "rc_mae"}, "labels": {}, "betas": [0.9, 0.95]}
    assert flat(spec) == {
        "method.teacher.momentum": 0.996,
        "method.name": "rc_mae",
        "labels": {},
        "betas": [0.9, 0.95],
    }


def test_code_in_hints_is_marked_and_all_else_escaped():
    assert coded("set `<b>` to 1 & go") == "set <code>&lt;b&gt;</code> to 1 &amp; go"
    assert coded("one ` alone") == "one  alone"
