"""pass@k and its relatives against golden values, against enumeration of every choice of k samples, and by their properties."""

import math
import random
from fractions import Fraction
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import ConfigError, DataError
from covey.evaluate.estimators import (
    all_at,
    average_at,
    change_interval,
    estimate,
    majority_at,
    paired,
    pass_at,
    plurality_at,
    powers_of_two,
)

counts = st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@pytest.mark.parametrize(
    ("n", "correct", "k", "value"),
    [
        (10, 3, 1, 0.300000),
        (10, 3, 2, 0.533333),
        (10, 3, 5, 0.916667),
        (10, 8, 5, 1.000000),
        (10, 0, 5, 0.000000),
        (1000, 7, 256, 0.874727),
    ],
)
def test_pass_at_k_has_its_golden_values(n, correct, k, value):
    assert pass_at(n, correct, k) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize(("n", "correct", "k", "value"), [(10, 3, 2, 0.066667), (10, 8, 5, 0.222222), (10, 1, 2, 0.0)])
def test_all_at_k_has_its_golden_values(n, correct, k, value):
    assert all_at(n, correct, k) == pytest.approx(value, abs=5e-7)


def test_average_and_standard_error_have_their_golden_values():
    found = estimate(average_at(4, sum(row), 4) for row in ([1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]))
    assert (found.mean, found.se) == (pytest.approx(0.666667, abs=5e-7), pytest.approx(0.220479, abs=5e-7))


@given(counts)
def test_pass_at_k_is_the_mean_over_every_choice_of_k_samples(drawn):
    n, correct, k = drawn
    outcomes = [1] * correct + [0] * (n - correct)
    choices = list(combinations(outcomes, k))
    assert pass_at(n, correct, k) == pytest.approx(sum(map(max, choices)) / len(choices), abs=1e-12)
    assert all_at(n, correct, k) == pytest.approx(sum(map(min, choices)) / len(choices), abs=1e-12)


@given(st.integers(1, 12), st.floats(0, 1), st.data())
def test_pass_at_k_is_unbiased(n, p, data):
    k = data.draw(st.integers(1, n))
    weights = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    expected = sum(weight * pass_at(n, c, k) for c, weight in enumerate(weights))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@given(st.integers(1, 200), st.data())
def test_more_tries_never_hurt_and_all_right_never_gets_easier(n, data):
    correct = data.draw(st.integers(0, n))
    passes = [pass_at(n, correct, k) for k in range(1, n + 1)]
    alls = [all_at(n, correct, k) for k in range(1, n + 1)]
    assert all(a <= b + 1e-12 for a, b in pairwise(passes))
    assert all(a >= b - 1e-12 for a, b in pairwise(alls))
    assert passes[0] == pytest.approx(alls[0]) == pytest.approx(average_at(n, correct, 1))


def test_large_counts_neither_overflow_nor_lose_digits():
    exact = 1 - Fraction(math.comb(9_993, 1_000), math.comb(10_000, 1_000))
    assert pass_at(10_000, 7, 1_000) == pytest.approx(float(exact), rel=1e-12)


@pytest.mark.parametrize("estimator", [pass_at, all_at, average_at])
def test_k_beyond_the_samples_is_an_error_and_never_clamped(estimator):
    with pytest.raises(ConfigError, match="k = 9: there are 8 samples"):
        estimator(8, 3, 9)
    with pytest.raises(ConfigError):
        estimator(8, 3, 0)
    with pytest.raises(DataError):
        estimator(8, 9, 2)


def vote(answers, right):
    """The share of the most frequent answers that are right: the definition, on one choice of samples."""
    votes = [answer for answer in answers if answer is not None]
    if not votes:
        return Fraction(0)
    most = max(votes.count(answer) for answer in votes)
    tied = {answer for answer in votes if votes.count(answer) == most}
    return Fraction(len(tied & right), len(tied))


@settings(max_examples=150)
@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=1, max_size=8), st.data())
def test_majority_at_k_is_the_mean_vote_over_every_choice_of_k_samples(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    right = data.draw(st.sets(st.sampled_from("abx"), max_size=2))
    choices = list(combinations(answers, k))
    expected = sum(vote(choice, right) for choice in choices) / len(choices)
    assert majority_at(answers, right, k) == pytest.approx(float(expected), abs=1e-12)


def test_nobody_votes_and_ties():
    assert majority_at([None, None], {"a"}, 2) == 0
    assert majority_at(["a", "b"], {"a"}, 2) == 0.5
    assert majority_at(["a", "a", "b"], {"a"}, 3) == 1
    with pytest.raises(ConfigError):
        majority_at(["a"], {"a"}, 2)


def test_no_problem_and_one_problem_have_no_standard_error():
    nothing, one = estimate([]), estimate([0.25])
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.se)
    assert nothing.count == 0
    assert one.mean == 0.25
    assert math.isnan(one.se)
    assert all(map(math.isnan, one.interval))
    assert math.isnan(estimate([0.5, math.nan]).mean)


def test_the_interval_is_near_the_normal_one_in_the_middle_and_stays_inside_at_the_ends():
    values = [(i * 7 % 9) / 8 for i in range(200)]
    found = estimate(values)
    low, high = found.interval
    assert low == pytest.approx(found.mean - 1.96 * found.se, abs=0.003)
    assert high == pytest.approx(found.mean + 1.96 * found.se, abs=0.003)
    low, high = estimate([1.0] * 200).interval
    assert high == 1
    assert 0.97 < low < 0.99
    low, high = estimate([0.0] * 200).interval
    assert (low, round(high, 3)) == (0, 0.019)
    assert estimate([0.5] * 50).interval[0] < 0.5 < estimate([0.5] * 50).interval[1]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_the_interval_holds_the_mean_and_is_a_part_of_0_to_1(values):
    found = estimate(values)
    low, high = found.interval
    assert 0 <= low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= high <= 1


def test_the_interval_covers_the_truth_about_95_times_in_100():
    draws, hits, rounds = random.Random(0), 0, 1000
    for _ in range(rounds):
        truth = [draws.random() ** 2 for _ in range(100)]
        found = estimate(sum(draws.random() < p for _ in range(8)) / 8 for p in truth)
        low, high = found.interval
        hits += low <= 1 / 3 <= high
    assert 0.93 < hits / rounds < 0.97


def test_a_paired_change_is_surer_than_two_means():
    before, after = [0.1, 0.5, 0.9, 0.3], [0.2, 0.7, 0.9, 0.5]
    change = paired(before, after)
    assert change.mean == pytest.approx(0.125)
    assert change.se == pytest.approx(0.0478714, abs=1e-6)
    assert change.se < estimate(after).se
    with pytest.raises(DataError):
        paired([0.1], [])


def test_powers_of_two():
    assert [powers_of_two(n) for n in (0, 1, 7, 8)] == [(), (1,), (1, 2, 4), (1, 2, 4, 8)]


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), st.booleans()), min_size=1, max_size=7), st.data())
def test_a_plurality_is_worth_the_share_of_its_samples_that_are_right(samples, data):
    """Where more than the answer decides (a form, say) the same answer can be right once and wrong once."""
    k = data.draw(st.integers(1, len(samples)))
    counts = {}
    for answer, right in samples:
        if answer is not None:
            count, good = counts.get(answer, (0, 0))
            counts[answer] = (count + 1, good + right)

    def worth(chosen):
        votes = [answer for answer, _ in chosen if answer is not None]
        most = max((votes.count(answer) for answer in votes), default=0)
        tied = [
            Fraction(counts[answer][1], counts[answer][0]) for answer in sorted({*votes}) if votes.count(answer) == most
        ]
        return sum(tied) / len(tied) if tied else Fraction(0)

    choices = list(combinations(samples, k))
    expected = sum(worth(choice) for choice in choices) / len(choices)
    assert plurality_at(counts, len(samples), k) == pytest.approx(float(expected), abs=1e-12)


def test_a_plurality_over_many_samples_is_counted_in_moments():
    answers = {
        "right": (60, 60),
        **{f"other{i}": (4, 0) for i in range(10)},
        **{f"rare{i}": (1, 0) for i in range(100)},
    }
    values = [plurality_at(answers, 200, k) for k in (1, 2, 8, 32, 128, 200)]
    assert values[0] == pytest.approx(0.3)
    assert values == sorted(values)
    assert values[-1] == 1


def test_the_interval_of_a_change_is_student_s():
    values = [0.1, 0.3, -0.2, 0.4, 0.0, 0.2, 0.1, -0.1, 0.3, 0.1]
    change = estimate(values)
    low, high = change_interval(change)
    assert high - change.mean == pytest.approx(2.262157 * change.se, rel=1e-3)  # t of 9 degrees of freedom
    assert change.mean - low == pytest.approx(high - change.mean)
    assert change_interval(estimate([0.0] * 60)) == (-0.05, 0.05)
    assert change_interval(estimate([1.0] * 2)) == (0.0, 1.0)
    assert all(map(math.isnan, change_interval(estimate([0.5]))))


@pytest.mark.parametrize("problems", [5, 12, 60])
def test_the_interval_of_a_change_covers_the_truth_about_95_times_in_100(problems):
    draws, hits, rounds = random.Random(1), 0, 2000
    for _ in range(rounds):
        found = [
            sum(draws.random() < 0.6 for _ in range(8)) / 8 - sum(draws.random() < 0.4 for _ in range(8)) / 8
            for _ in range(problems)
        ]
        low, high = change_interval(estimate(found))
        hits += low <= 0.2 <= high
    assert 0.93 < hits / rounds < 0.975
