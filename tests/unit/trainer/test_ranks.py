"""Work shared by all ranks: the same results on each of them, and errors that reach them all."""

import pytest
from worlds import on_ranks

from trainer.errors import DataError
from trainer.evaluation.ranks import OtherRankFailed, Ranks, alone


def spread_and_gather(ranks: Ranks, count: int):
    ran: list[int] = []

    def task(number: int):
        ran.append(number)
        return number**2

    results = ranks.spread([lambda number=number: task(number) for number in range(count)])
    return results, ranks.gather((ranks.rank, ran))


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_task_runs_on_one_rank_and_every_rank_has_all_results_in_order(tmp_path, world, count):
    expected = [(rank, list(range(rank, count, world))) for rank in range(world)]
    assert on_ranks(world, tmp_path, spread_and_gather, count) == [([n**2 for n in range(count)], expected)] * world


class Unsendable(Exception):
    def __init__(self) -> None:
        super().__init__("two", lambda: None)


def fail_on(ranks: Ranks, failing: list[int], unsendable: bool):
    def task() -> int:
        if ranks.rank in failing:
            raise Unsendable if unsendable else DataError(f"cats.png: damaged, says rank {ranks.rank}")
        return ranks.rank

    return ranks.spread([task] * 3)


def test_an_error_of_one_rank_is_raised_on_all_at_once(tmp_path):
    errors = on_ranks(3, tmp_path / "one", fail_on, [1], False)
    assert [(type(error), str(error)) for error in errors] == [(DataError, "cats.png: damaged, says rank 1")] * 3
    errors = on_ranks(3, tmp_path / "two", fail_on, [1, 2], False)
    assert [str(error)[-1] for error in errors] == ["1", "1", "2"], "a rank raises its own error"


def test_an_error_that_cannot_be_sent_is_named_on_the_other_ranks(tmp_path):
    errors = on_ranks(2, tmp_path, fail_on_rank_1_and_keep_the_type)
    assert errors == ["OtherRankFailed: rank 1: Unsendable", "Unsendable"]


def fail_on_rank_1_and_keep_the_type(ranks: Ranks):
    try:
        fail_on(ranks, [1], True)
    except OtherRankFailed as error:
        return f"OtherRankFailed: {str(error).partition(': (')[0]}"
    except Unsendable:
        return "Unsendable"


def test_one_rank_works_alone():
    assert alone().spread([lambda: 1, lambda: 2]) == [1, 2]
    with pytest.raises(DataError, match="damaged"):
        fail_on(alone(), [0], False)
