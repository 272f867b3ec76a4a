"""The console on a recorded terminal: what a user reads, where nothing is shown, and that no model text acts."""

import dataclasses
import io
import re
from pathlib import Path

import pytest
from rich.console import Console as Terminal

from covey.observe.completions import choose, signal
from covey.observe.console import Console, Rhythm, RunInfo
from covey.observe.health import Finding
from covey.observe.line import Field, bar, count, duration, fit
from covey.types import Group, Message, Prompt, Rollout, RolloutKey, Stop, Turn

INFO = RunInfo(
    recipe="dr_grpo",
    model="tiny",
    task="compose",
    folder=Path("runs/demo-1"),
    steps=12,
    prompts=8,
    samples=4,
    parameters=312_345,
)
VALUES = {
    "reward/mean": 0.25,
    "reward/correct": 0.25,
    "group/mixed": 0.5,
    "length/mean": 13.2,
    "entropy/sampled": 1.23,
    "clip/low": 0.01,
    "clip/high": 0.02,
    "time/step_s": 1.5,
}
EVIL = "\x1b[2J\x1b]0;owned\x07[red]B(abdc)[/red]=fecd.\u202e\x9b31m"


def group(number, right, text="B(abdc)=fecd."):
    prompt = Prompt(f"p{number}", (Message("user", f"B(E(abc{number}))="),), "x", "compose")
    rollouts = tuple(
        Rollout(
            RolloutKey(prompt.id, i),
            (Turn((1,), (-0.1,)),),
            Stop.END if i else Stop.LENGTH,
            48,
            text=text,
            rewards={"correct": float(i < right), "format": -float(i == 3)},
        )
        for i in range(4)
    )
    return Group(f"g{number}", prompt, (1,), rollouts)


class Recorded:
    """A console that writes to a string."""

    def __init__(self, *, tty=True, width=120, encoding=None, **options):
        self.file = io.StringIO() if encoding is None else io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        self.terminal = Terminal(file=self.file, force_terminal=tty, width=width, color_system=None, highlight=False)
        times = iter(range(10_000))
        self.console = Console(self.terminal, clock=lambda: next(times), **options)

    @property
    def text(self):
        if isinstance(self.file, io.StringIO):
            return self.file.getvalue()
        self.file.flush()
        return self.file.buffer.getvalue().decode(self.file.encoding)


def play(recorded, steps=12, groups=None, **last):
    with recorded.console as console:
        console.start(INFO)
        for n in range(1, steps + 1):
            console.step(n, VALUES | {"reward/mean": 0.25 + n / 50} | last, groups)
    return recorded.text


def test_the_header_says_what_runs_where():
    recorded = Recorded()
    recorded.console.start(INFO)
    assert recorded.text.strip() == (
        "covey train: dr_grpo on compose | 8 prompts × 4 samples | tiny (312 k parameters) | cpu, 1 thread | 12 steps | "
        "runs/demo-1"
    )


def test_the_header_tells_what_is_trained_of_a_model_with_adapters():
    recorded = Recorded()
    recorded.console.start(dataclasses.replace(INFO, trained=9_216))
    assert "tiny (312 k parameters, 9.22 k trained)" in " ".join(recorded.text.split())


def test_a_step_is_one_line_in_place():
    text = play(Recorded(width=130), groups=[group(1, 2), group(2, 4)])
    assert (
        "step  2/12  ━╌╌╌╌╌╌╌╌╌  reward 0.29 (+0.02)  solved 25%  signal 1/2  length 13  entropy 1.23  clip 3%  1.5 s/step"
        "  15 s left"
    ) in text
    assert "step 12/12  ━━━━━━━━━━" in text
    assert text.count("\n") <= 20
    assert text.endswith("\x1b[?25h")


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100])
def test_a_narrow_terminal_loses_the_least_important_fields_and_never_wraps(width):
    lines = re.split(r"\x1b\[2K|\n", play(Recorded(width=width), groups=None))
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) >= 12
    assert all(len(line.rstrip("\r\n").replace("\x1b[?25h", "")) <= width for line in steps)


def test_without_a_terminal_there_is_a_plain_line_every_few_steps():
    text = play(Recorded(tty=False, rhythm=Rhythm(plain=5)), groups=[group(1, 2)])
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.strip().split("\n")
    assert [re.match(r"step +(\d+)/12", line)[1] for line in lines[1:]] == ["1", "5", "10", "12"]
    assert "samples of" not in text
    assert "━" not in text


def test_quiet_shows_nothing():
    recorded = Recorded(quiet=True)
    play(recorded, groups=[group(1, 2)], **{"grad/skipped": 1.0})
    recorded.console.evaluation({"eval/accuracy": 0.5}, 0)
    recorded.console.finish(step=12, chart="chart")
    assert recorded.text == ""


def test_completions_come_at_intervals_and_cannot_act():
    recorded = Recorded(rhythm=Rhythm(completions=6, rows=2))
    with recorded.console as console:
        for n in range(1, 13):
            console.step(n, VALUES, [group(1, 0), group(2, 1, EVIL)], {"g2": (0.75, -0.25, -0.25, -0.25)})
    text = recorded.text
    assert [f"samples of step {n}" in text for n in (5, 6, 12)] == [False, True, True]
    assert "[red]B(abdc)[/red]=fecd." in text
    assert "owned" not in text
    assert not re.search(r"[\x07\x9b\u202e]|\x1b(?!\[[0-9;?]*[A-KhlmJK])|\x1b\[[23]J", text)
    row = next(line for line in text.split("\n") if "+0.75" in line)
    assert re.search(r"B\(E\(abc2\)\)= +│ .*│ +1 │ +\+0\.75 │ length", row)
    assert "0, format -1" in text


def test_the_table_shows_groups_with_a_signal_first_their_best_and_worst():
    groups = [group(1, 4), group(2, 2), group(3, 0)]
    assert [(g.id, place) for g, place in choose(groups, 2)] == [("g2", 0), ("g2", 3)]
    assert signal(groups) == (1, 3)  # only g2 has outcomes that differ; the format does not count
    flat = group(4, 0).with_(rollouts=group(4, 0).rollouts[:2])
    assert signal([flat, Group("empty", flat.prompt, (), ())]) == (0, 2)
    assert [(g.id, place) for g, place in choose([flat], 4)] == [("g4", 0)]


def test_a_health_line_says_what_is_off_and_where_it_is_explained():
    recorded = Recorded(tty=False, width=200)
    recorded.console.health([Finding("truncation", "50% of the rollouts hit the token budget", "Raise it.")])
    said = "health  truncation: 50% of the rollouts hit the token budget. Raise it. See `covey explain truncation`.\n"
    assert recorded.text == said
    quiet = Recorded(quiet=True)
    quiet.console.health([Finding("truncation", "x", "y")])
    assert quiet.text == ""


def test_an_evaluation_of_one_problem_has_no_interval():
    recorded = Recorded(tty=False, width=200)
    nothing = {"eval/low": float("nan"), "eval/high": float("nan")}
    recorded.console.evaluation({"eval/accuracy": 0.5, "eval/problems": 1} | nothing, 0)
    assert recorded.text == "eval  after step 0: accuracy 0.50 (1 problem, no interval)\n"


def test_an_evaluation_is_shown_against_the_first_one():
    recorded = Recorded(tty=False, width=200)
    record = {
        "eval/accuracy": 0.31,
        "eval/low": 0.28,
        "eval/high": 0.34,
        "eval/problems": 200,
        "eval/accuracy_L1": 0.98,
    }
    recorded.console.evaluation(record, 0)
    recorded.console.evaluation(record | {"eval/accuracy": 0.6}, 50)
    recorded.console.evaluation(record | {"eval/accuracy": 0.83, "eval/low": 0.79, "eval/high": 0.87}, 100)
    assert recorded.text.strip().split("\n") == [
        "eval  after step 0: accuracy 0.31 (200 problems, 95% interval 0.28 to 0.34)  L1 0.98",
        "eval  after step 50: accuracy 0.31 → 0.60 (200 problems, 95% interval 0.28 to 0.34)  L1 0.98",
        "eval  after step 100: accuracy 0.31 → 0.83 (200 problems, 95% interval 0.79 to 0.87)  L1 0.98",
    ]


@pytest.mark.parametrize(
    ("outcome", "saved", "said", "next_"),
    [
        ("done", True, "saved {}/model after 7 steps", "next: covey show {0}   |   covey eval {0}"),
        (
            "interrupted",
            True,
            "interrupted after 7 steps; the state is in {}/checkpoints",
            "next: covey train --resume {}",
        ),
        (
            "stopped early",
            True,
            "stopped early, saved {}/model after 7 steps",
            "next: covey show {0}   |   covey eval {0}",
        ),
        ("failed", True, "stopped by an error after 7 steps; the state is in {}/", "next: covey train --resume {}"),
        ("failed", False, "stopped by an error after 7 steps; nothing was saved before", "next: covey show {}"),
    ],
)
def test_the_end_names_the_next_commands(outcome, saved, said, next_, tmp_path):
    if saved:
        (tmp_path / "checkpoints" / "step-000005").mkdir(parents=True)
    recorded = Recorded()
    recorded.console.start(RunInfo(**{**as_dict(INFO), "folder": tmp_path}))
    recorded.console.finish(step=7, outcome=outcome, chart="a\n b", notes=["best 0.5 after step 3"])
    assert "a\n b\nbest 0.5 after step 3\n" in recorded.text
    assert said.format(tmp_path) in recorded.text
    assert next_.format(tmp_path) in recorded.text


def test_names_from_outside_are_cleaned_and_are_no_markup():
    recorded = Recorded(tty=False, width=300)
    recorded.console.start(
        RunInfo(**{**as_dict(INFO), "model": "[bold]x[/bold]\x1b[31m", "folder": Path("runs/[red]")})
    )
    recorded.console.finish(step=1)
    assert "[bold]x[/bold]" in recorded.text
    assert "covey eval 'runs/[red]'" in recorded.text  # to be pasted into a shell
    assert "\x1b" not in recorded.text


def as_dict(info):
    return {name: getattr(info, name) for name in info.__dataclass_fields__}


def test_a_terminal_that_knows_only_ascii_gets_only_ascii():
    recorded = Recorded(encoding="ascii", rhythm=Rhythm(completions=1))
    recorded.console.start(INFO)
    recorded.console.step(1, VALUES, [group(1, 2, "«é»")])
    recorded.console.evaluation({"eval/accuracy": 0.1}, 0)
    recorded.console.evaluation({"eval/accuracy": 0.2}, 1)
    recorded.console.finish(step=1)
    assert "8 prompts x 4 samples" in recorded.text
    assert r"\xab\xe9\xbb" in recorded.text
    assert "0.10 -> 0.20" in recorded.text


def test_an_error_in_the_run_gives_the_terminal_back():
    recorded = Recorded()

    def fail():
        with recorded.console as console:
            console.step(1, VALUES)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert recorded.text.endswith("\x1b[?25h")


def test_a_step_with_no_metrics_at_all_has_a_line():
    assert "step 1" in play(Recorded(tty=False), steps=1).replace("step  1", "step 1")
    recorded = Recorded(tty=False)
    recorded.console.step(1, {})
    assert recorded.text.startswith("step 1/1")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (float("nan"), "?"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_counts_and_bars():
    assert [count(n) for n in (999, 312_345, 1_700_000, 8 * 10**9)] == ["999", "312 k", "1.7 M", "8 B"]
    assert bar(0, 10) == "╌" * 10
    assert bar(10, 10, ascii_only=True) == "#" * 10
    assert bar(1, 0) == "━" * 10


def test_fitting_drops_the_highest_rank_first():
    pieces = [Field("step", -2), Field("reward", 0), Field("clip", 7), Field("length", 6)]
    assert [p.text for p in fit(pieces, 22)] == ["step", "reward", "length"]
    assert [p.text for p in fit(pieces, 1)] == ["step"]
