"""Each health condition fires on what it is for, names its code, and stays silent on a healthy run."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from covey.config.schema import list_rows
from covey.errors import ConfigError
from covey.observe.health import AGAIN, CONDITIONS, LATEST, WINDOW, Watch, check
from covey.observe.names import describe
from covey.observe.pages import PAGES, find_page, list_codes, write_page
from covey.observe.show import render, summary
from covey.observe.sinks import RunSink
from covey.types import Group, Prompt, Rollout, RolloutKey, Stop, Turn

DOCS = Path(__file__).parents[2] / "docs" / "health"

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
    "length/mean": 40.0,
    "clip/low": 0.02,
    "clip/high": 0.02,
    "penalty/kl": 0.05,
    "grad/norm": 0.5,
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


GAIN = {"reward__mean": 0.8}


@pytest.mark.parametrize(
    ("code", "fires", "nearly"),
    [
        ("length-growth", {"length__mean": 81.0}, [{"length__mean": 80.0}, {"length__mean": 81.0} | GAIN]),
        ("length-collapse", {"length__mean": 13.0}, [{"length__mean": 14.0}, {"length__mean": 13.0} | GAIN]),
        ("entropy-explosion", {"entropy__sampled": 2.1}, [{"entropy__sampled": 2.0}, {"entropy__sampled": 2.1} | GAIN]),
        ("clipping", {"clip__low": 0.15, "clip__high": 0.06}, [{"clip__low": 0.15, "clip__high": 0.05}]),
        ("kl-growth", {"penalty__kl": 0.51}, [{"penalty__kl": 0.5}]),
        ("mismatch", {"kl__sampled_vs_old": -0.11}, [{"kl__sampled_vs_old": 0.1}]),
    ],
)
def test_a_condition_of_several_steps_fires_and_nearly_does_not(code, fires, nearly):
    assert codes(*run(5), *run(5, **fires)) == [code]
    for values in nearly:
        assert codes(*run(5), *run(5, **values)) == []
    if code != "mismatch":
        assert codes(*run(6), *run(4, **fires)) == []


def test_what_changes_needs_a_start_to_compare_with():
    for values in ({"length__mean": 400.0}, {"length__mean": 1.0}, {"entropy__sampled": 5.0}):
        assert codes(*run(30, **values)) == []
        assert codes(*run(4), *run(5, **values)) == []


def test_entropy_that_rises_below_one_nat_is_a_policy_that_was_sure():
    assert codes(*run(5, entropy__sampled=0.1), *run(5, entropy__sampled=0.9)) == []


def test_a_reward_that_rises_within_its_noise_is_no_better():
    noisy = [GOOD | {"reward/mean": value} for value in (0.2, 0.8, 0.3, 0.7, 0.5)]
    longer = [GOOD | {"reward/mean": value, "length/mean": 100.0} for value in (0.3, 0.8, 0.4, 0.7, 0.6)]
    assert codes(*noisy, *longer) == ["length-growth"]


def test_a_gradient_spike_is_ten_times_the_median_of_the_steps_that_had_one():
    assert codes(*run(10), GOOD | {"grad/norm": 5.1}) == ["gradient-spike"]
    assert codes(*run(10), GOOD | {"grad/norm": 5.0}) == []
    assert codes(*run(9), GOOD | {"grad/norm": 5.1}) == []
    silent = run(20, grad__norm=0.0)
    assert codes(*run(9), *silent, GOOD | {"grad/norm": 50.0}) == []
    assert codes(*run(10), *silent, GOOD | {"grad/norm": 5.1}) == ["gradient-spike"]


def failing(*reasons, right=8):
    """A group with `right` scored rollouts and one for every reason."""
    prompt = Prompt("p", (), "x", "t")
    made = [{"rewards": {"correct": 1.0}}] * right + [{"failures": {"correct": reason}} for reason in reasons]
    rollouts = tuple(
        Rollout(RolloutKey("p", index), (Turn((1,), (-0.1,)),), Stop.END, 8, **parts)
        for index, parts in enumerate(made)
    )
    return Group("g", prompt, (1,), rollouts)


def watched(group):
    failed = sum(bool(rollout.failures) for rollout in group.rollouts)
    return Watch().step(1, GOOD | {"reward/failed": failed / len(group.rollouts)}, [group])


def test_failures_are_counted_by_type():
    reasons = ["timeout: 10 s", "exception: ValueError: x: y", "timeout: 10 s", "a reason of its own", "none: x"]
    [finding] = watched(failing(*reasons))
    assert finding.seen == "38% of the rollouts could not be scored (timeout 2, exception 1, other 1, none 1)"


def test_none_on_purpose_is_no_failure_unless_most_have_no_score():
    assert watched(failing("none: x", "none: x")) == []
    [finding] = watched(failing(*["none: x"] * 9))
    assert finding.code == "reward-failures"
    [finding] = watched(failing("none: x", "crash: signal 9"))
    assert "none 1, crash 1" in finding.seen


# What is told when


def tell(watch, first, last, **values):
    [row] = run(1, **values)
    return [n for n in range(first, last + 1) if watch.step(n, row)]


def test_a_finding_is_told_when_it_appears_and_again_after_a_while():
    assert tell(Watch(), 1, 130, stop__truncated=0.5) == [1, 51, 101]
    watch = Watch(again=5)
    assert tell(watch, 1, 3, stop__truncated=0.5) == [1]
    assert tell(watch, 4, 9) == []
    assert tell(watch, 10, 12, stop__truncated=0.5) == [10]
    assert AGAIN == 50


def test_a_long_run_still_knows_how_it_began():
    watch = Watch()
    assert tell(watch, 1, 3 * LATEST) == []
    rows = [watch.step(3 * LATEST + n, GOOD | {"length/mean": 100.0}) for n in range(1, WINDOW + 2)]
    assert [finding.code for found in rows for finding in found] == ["length-growth"]


def test_a_resumed_watch_tells_what_an_undisturbed_one_tells():
    rows = [*run(20), *run(40, stop__truncated=0.5), *run(20, length__mean=100.0), *run(30, clip__high=0.5)]

    def play(watch, start):
        return [(n, finding.code) for n in range(start, len(rows)) for finding in watch.step(n + 1, rows[n])]

    whole = play(Watch(), 0)
    assert {code for _, code in whole} == {"truncation", "length-growth", "clipping"}
    for at in (0, 7, 20, 21, 64, 90):
        told = [(n + 1, code) for n, code in whole if n < at]
        watch = Watch()
        watch.recall(rows[:at], told)
        assert play(watch, at) == [(n, code) for n, code in whole if n >= at]


def test_findings_are_written_cut_back_and_shown(tmp_path):
    (tmp_path / "run.yaml").write_text("name: x\nbudget: {steps: 9}\n")
    sink, watch = RunSink(tmp_path), Watch(again=2)
    for step in range(1, 6):
        sink.write("step", {"step": step, **GOOD})
        sink.write_findings(step, watch.step(step, GOOD | {"stop/truncated": 0.3}))
        if step == 4:
            saved = sink.offsets()
    rows = [json.loads(line) for line in (tmp_path / "health.jsonl").read_text().splitlines()]
    assert [(row["step"], row["code"]) for row in rows] == [(step, "truncation") for step in (1, 3, 5)]
    sink.truncate(saved, 4)
    sink.close()
    told = summary(tmp_path)
    seen = "30% of the rollouts hit the token budget"
    assert told["health"] == [{"code": "truncation", "steps": [1, 3], "seen": seen}]
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(told))
    assert f"truncation (steps 1 to 3): {seen}; see `covey explain truncation`" in console.export_text()


# Pages


def test_every_condition_has_a_page_and_every_page_a_condition():
    source = Path(sys.modules["covey.observe.health"].__file__).read_text()
    codes = {code for code in (page.code for page in PAGES) if f'"{code}"' in source}
    assert codes == {page.code for page in PAGES}
    assert len(CONDITIONS) == len(PAGES)
    assert len(codes) == len(PAGES)


def test_the_pages_in_docs_are_those_of_the_code():
    assert {path.stem: path.read_text() for path in DOCS.glob("*.md")} == {
        page.code: write_page(page) for page in PAGES
    }


def test_pages_name_keys_and_metrics_that_exist():
    keys = {row.path for row in list_rows()}
    for page in PAGES:
        text = write_page(page)
        for name in re.findall(r"`((?:budget|model|scoring|engines)\.[a-z_.]+)", text):
            assert name in keys or any(key.startswith(f"{name}.") for key in keys), (page.code, name)
        for name in re.findall(r"`([a-z]+/[a-z_]+)`", text):
            assert describe(name), (page.code, name)


def test_explain_prints_a_page_all_codes_or_the_nearest_code():
    def covey(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "covey", "explain", *arguments], capture_output=True, text=True, timeout=60
        )

    assert covey("truncation").stdout == write_page(find_page("truncation"))
    assert covey().stdout == list_codes()
    assert [page["code"] for page in json.loads(covey("--json").stdout)] == [page.code for page in PAGES]
    wrong = covey("no-signl")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: covey explain: there is no health code 'no-signl'. Did you mean 'no-signal'?\n"
    with pytest.raises(ConfigError):
        find_page("nothing")


def test_every_condition_is_documented_and_findings_are_one_line():
    assert all(condition.__doc__ for condition in CONDITIONS)
    for finding in check([GOOD | {"group/mixed": 0.0, "stop/truncated": 1.0, "grad/skipped": 1}]):
        assert "\n" not in str(finding)
        assert str(finding).startswith(f"{finding.code}: ")
