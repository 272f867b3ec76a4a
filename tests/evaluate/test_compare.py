"""Two evaluations of the same problems: paired changes, and what may not be compared."""

import pytest

from covey.errors import DataError
from covey.evaluate.compare import compare
from covey.evaluate.estimators import all_at, estimate, pass_at
from covey.evaluate.evaluate import Evaluation
from covey.evaluate.table import Tally


def table(counts, name="L", n=4):
    rows = [Tally(id=f"p{i}", set=name, level=None, samples=((0, n),), correct=c) for i, c in enumerate(counts)]
    return Evaluation(tuple(rows), name)


def test_changes_are_paired_by_problem_whatever_their_order():
    before, after = table([0, 2, 4, 1]), table([1, 3, 4, 3])
    shuffled = Evaluation(tuple(reversed(after.tallies)), "L")
    (found,) = compare(before, after)
    assert (found,) == tuple(compare(before, shuffled))
    assert found.change == estimate([0.25, 0.25, 0.0, 0.5])
    assert (found.before.mean, found.after.mean) == (7 / 16, 11 / 16)
    assert found.interval[0] < 0.25 < found.interval[1]
    assert found.record()["change"] == 0.25


def test_pass_k_and_all_k_are_compared_where_asked():
    found = compare(table([1, 2]), table([2, 4]), ks=(2,))
    assert [change.quantity for change in found] == ["accuracy", "pass@2", "pass^2"]
    assert found[1].change.mean == (pass_at(4, 2, 2) - pass_at(4, 1, 2) + pass_at(4, 4, 2) - pass_at(4, 2, 2)) / 2
    assert found[2].after.mean == (all_at(4, 2, 2) + 1) / 2


def test_different_numbers_of_samples_can_be_compared():
    assert compare(table([2, 2]), table([4, 4], n=8))[0].change.mean == 0


def test_other_problems_or_sets_are_refused():
    with pytest.raises(DataError, match="only the second was asked problem p2"):
        compare(table([1, 2]), table([1, 2, 3]))
    both = Evaluation((*table([1]).tallies, *table([1], name="M").tallies))
    for pair in ((both, table([1])), (table([1]), both)):
        with pytest.raises(DataError, match="set M"):
            compare(*pair)
