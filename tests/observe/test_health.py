"""Each health condition fires on what it is for, names its code, and stays silent on a healthy run."""

import math

import pytest

from covey.observe.health import CONDITIONS, check

GOOD = {
    "reward/mean": 0.5,
    "group/mixed": 0.6,
    "group/all_right": 0.2,
    "group/all_wrong": 0.2,
    "stop/truncated": 0.2,
    "entropy/sampled": 1.0,
    "reward/failed": 0.0,
    "grad/skipped": 0.0,
    "logp/nonfinite": 0.0,
    "kl/sampled_vs_old": 1e-4,
    "admit/missing": 0.0,
}


def codes(*rows):
    return [finding.code for finding in check(rows)]


def run(steps, **last):
    """Healthy steps with other values in all of them."""
    return [GOOD | {name.replace("__", "/"): value for name, value in last.items()}] * steps


@pytest.mark.parametrize("steps", [0, 1, 4, 30])
def test_a_healthy_run_has_no_health_line(steps):
    assert codes(*run(steps)) == []


def test_metrics_that_are_absent_or_nan_raise_nothing():
    assert codes(*[{}] * 9) == []
    assert codes(*[dict.fromkeys(GOOD, math.nan)] * 9) == []


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("group/mixed", 0.0, "no-signal"),
        ("stop/truncated", 0.21, "truncation"),
        ("reward/failed", 0.01, "reward-failures"),
        ("grad/skipped", 1.0, "skipped-step"),
        ("logp/nonfinite", 3.0, "nonfinite"),
        ("kl/sampled_vs_old", 0.2, "mismatch"),
        ("admit/missing", 4.0, "short-step"),
    ],
)
def test_a_condition_of_one_step_fires_at_once_and_ends_with_it(name, value, code):
    assert codes(*run(6), GOOD | {name: value}) == [code]
    assert codes(GOOD | {name: value}) == [code]
    assert codes(*run(6), GOOD | {name: value}, GOOD) == []


def test_five_steps_without_any_signal_have_a_code_of_their_own():
    assert codes(*run(5, group__mixed=0.0)) == ["equal-groups"]
    assert codes(*run(4, group__mixed=0.0)) == ["no-signal"]
    assert codes(*run(9), *run(5, group__mixed=0.0)) == ["equal-groups"]


def test_little_signal_takes_five_steps():
    assert codes(*run(4, group__mixed=0.1)) == []
    assert codes(*run(5, group__mixed=0.1)) == ["little-signal"]
    assert codes(*run(5, group__mixed=0.13)) == []


def test_the_line_says_on_which_side_the_groups_are_and_what_helps():
    [hard] = check(run(5, group__mixed=0.0, group__all_wrong=1.0, group__all_right=0.0))
    [easy] = check(run(5, group__mixed=0.0, group__all_wrong=0.0, group__all_right=1.0))
    assert "all wrong" in str(hard)
    assert "Easier problems" in str(hard)
    assert "all right" in str(easy)
    assert "too easy" in str(easy)


def test_entropy_collapse_compares_with_the_start_and_forgives_success():
    start, low = run(5), run(5, entropy__sampled=0.05)
    assert codes(*start, *low) == ["entropy-collapse"]
    assert codes(*start, *run(5, entropy__sampled=0.11)) == []
    assert codes(*start, *run(5, entropy__sampled=0.05, reward__mean=0.95)) == []
    assert codes(*start, *run(5, entropy__sampled=0.05, reward__correct=0.3)) == ["entropy-collapse"]
    assert codes(*run(10, entropy__sampled=0.05)) == []


def test_every_condition_is_documented_and_findings_are_one_line():
    assert all(condition.__doc__ for condition in CONDITIONS)
    for finding in check([GOOD | {"group/mixed": 0.0, "stop/truncated": 1.0, "grad/skipped": 1}]):
        assert "\n" not in str(finding)
        assert str(finding).startswith(f"{finding.code}: ")
