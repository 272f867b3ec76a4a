"""Evaluation with a sampler that follows a script: what is asked, what counts as right, and what is reported."""

import asyncio
import math

import pytest

from covey.errors import ConfigError
from covey.evaluate.estimators import all_at, majority_at
from covey.evaluate.evaluate import Evaluation, Plan, count, evaluate, is_right
from covey.evaluate.table import merge
from covey.random import key
from covey.rewards import ExactMatch, NumberMatch
from covey.tasks.scoring import ClosedAnswer
from covey.types import Group, Message, Prompt, Rollout, RolloutKey, Sample, Sampling, Score, Stop, Turn


class Scripted:
    """Answers `right` where the noise key modulo 8 is below the difficulty in the prompt's tokens; runs on at keys 7 mod 8."""

    def __init__(self):
        self.requests = []

    def sample(self, requests, sampling):
        self.requests += requests
        return [[self._one(request.tokens[0], noise) for noise in request.noise_keys] for request in requests]

    def _one(self, ease, noise):
        tokens = (1,) if noise % 8 < ease else (2, 2, 2)
        stop = Stop.LENGTH if noise % 8 == 7 else Stop.END
        return Sample(Turn(tokens, tuple(-0.5 for _ in tokens)), stop)


class Words:
    """A reward in words: `yes` is right, `odd` cannot be scored."""

    async def score(self, prompt, rollouts):
        await asyncio.sleep(0)
        return [self._one(rollout.text) for rollout in rollouts]

    def _one(self, text):
        if text == "odd":
            return Score(failures={"correct": "timeout"})
        return Score({"correct": float(text == "yes")}, facts={"class": "correct" if text == "yes" else "atom"})


class Quiz:
    """Two sets of problems of known ease, one of them the main one."""

    main_set = "L2"
    size = None
    reward = Words()

    def held_out(self, seed):
        return {
            "L1": [prompt(f"quiz/L1/{i}", 7, 1) for i in range(3)],
            "L2": [prompt(f"quiz/L2/{i}", ease, 2) for i, ease in enumerate((0, 3, 8, 5))],
        }


def prompt(name, ease, level):
    return Prompt(name, (Message("user", str(ease)),), "yes", "quiz", {"level": level})


def run(plan, sampling=None, sampler=None, task=None):
    words = {1: "yes", 2: "no", 3: "odd"}
    return evaluate(
        sampler or Scripted(),
        task or Quiz(),
        plan,
        sampling=sampling or Sampling(max_tokens=5),
        render=lambda messages: (int(messages[0].content),),
        decode=lambda tokens: words[tokens[0]],
    )


def test_counts_follow_from_the_noise_keys_alone():
    found = run(Plan(seed=3, samples=16))
    expected = {}
    for name, prompts in Quiz().held_out(3).items():
        for item in prompts:
            keys = [key(3, "eval", item.id, index) % 8 for index in range(16)]
            ease = int(item.messages[0].content)
            expected[name, item.id] = (sum(k < ease for k in keys), sum(k == 7 for k in keys))
    assert {(t.set, t.id): (t.correct, t.truncated) for t in found.tallies} == expected
    assert [t.level for t in found.tallies] == [1] * 3 + [2] * 4
    assert {t.n for t in found.tallies} == {16}


def test_the_same_plan_asks_with_the_same_noise_and_more_samples_keep_the_first_ones():
    one, two, more = Scripted(), Scripted(), Scripted()
    run(Plan(samples=4), sampler=one)
    run(Plan(samples=4), sampler=two)
    run(Plan(samples=8), sampler=more)
    assert one.requests == two.requests
    assert [r.noise_keys for r in one.requests] == [r.noise_keys[:4] for r in more.requests]
    assert len({noise for r in more.requests for noise in r.noise_keys}) == 7 * 8


def test_two_halves_merge_into_the_whole():
    whole = run(Plan(samples=8))
    halves = merge(run(Plan(samples=4)).tallies, run(Plan(samples=4, first=4)).tallies)
    assert halves == whole.tallies
    assert Evaluation(halves, "L2").record() == whole.record()


def test_the_record_has_the_main_set_bare_and_every_set_by_name():
    record = run(Plan(samples=8)).record()
    tallies = run(Plan(samples=8)).tallies[3:]
    shares = [t.correct / 8 for t in tallies]
    mean = sum(shares) / 4
    assert record["eval/accuracy"] == record["eval/accuracy_L2"] == pytest.approx(mean)
    assert record["eval/pass@1_L2"] == pytest.approx(mean)
    assert record["eval/se"] == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in shares) / 3 / 4))
    assert record["eval/low"] < mean < record["eval/high"]
    assert record["eval/pass@8_L2"] == sum(share > 0 for share in shares) / 4
    assert record["eval/mixed_L2"] == sum(0 < share < 1 for share in shares) / 4
    assert record["eval/truncated_L2"] == sum(t.truncated for t in tallies) / 32
    assert record["eval/class_atom_L2"] == pytest.approx(1 - mean)
    assert record["eval/length_L2"] == pytest.approx(mean + 3 * (1 - mean))
    assert (record["eval/problems_L1"], record["eval/samples_L1"]) == (3, 24)
    assert {"eval/accuracy_L1", "eval/pass@4_L1", "eval/pass@2_se_L1"} <= set(record)
    assert "eval/pass@16_L2" not in record
    assert all(isinstance(value, (int, float)) for value in record.values())


def test_sets_and_problems_can_be_chosen():
    found = run(Plan(samples=2, problems=2, sets=("L1",)))
    assert [t.id for t in found.tallies] == ["quiz/L1/0", "quiz/L1/1"]
    assert "eval/accuracy" not in found.record()
    assert found.groups["L1"][0].rollouts[0].text in ("yes", "no")


@pytest.mark.parametrize(
    ("plan", "sampling", "message"),
    [
        (Plan(sets=("L3",)), Sampling(), "there is no evaluation set 'L3'.*L"),
        (Plan(samples=0), Sampling(), "samples: got 0"),
        (Plan(problems=0), Sampling(), "problems: got 0"),
        (Plan(samples=2), Sampling(temperature=0), "greedy samples"),
    ],
)
def test_plans_that_cannot_be_right_are_refused(plan, sampling, message):
    with pytest.raises(ConfigError, match=message):
        run(plan, sampling)


def test_one_greedy_sample_is_fine():
    assert run(Plan(samples=1), Sampling(temperature=0)).sets["L2"].pass_at.keys() == {1}


def test_it_runs_inside_an_event_loop_too():
    async def inside():
        return run(Plan(samples=2)).record()

    assert asyncio.run(inside()) == run(Plan(samples=2)).record()


class Odd(Scripted):
    def _one(self, ease, noise):
        return Sample(Turn((3,), (-0.1,)), Stop.END)


def test_what_could_not_be_scored_is_wrong_and_counted_apart():
    record = run(Plan(samples=4), sampler=Odd()).record()
    assert record["eval/accuracy"] == 0
    assert record["eval/failed"] == 1


def test_an_empty_set_has_no_row():
    class Empty(Quiz):
        def held_out(self, seed):
            return {"L2": []}

    assert run(Plan(samples=4), task=Empty()).record() == {}


def rollout(rewards, failures=()):
    return Rollout(RolloutKey("p", 0), (), Stop.END, 5, rewards=rewards, failures=dict.fromkeys(failures, "why"))


def test_what_counts_as_right():
    assert is_right(rollout({"format": 0.0, "correct": 1.0}))
    assert not is_right(rollout({"format": 1.0, "correct": 0.0}))
    assert is_right(rollout({"score": 1 - 1e-10}))
    assert not is_right(rollout({"score": 0.999}))
    assert not is_right(rollout({}))
    assert not is_right(rollout({"format": 1.0}, failures=["correct"]))
    assert is_right(rollout({"correct": 1.0}, failures=["style"]))


class Votes(Words):
    """The same reward, which also says what the answer is; `odd` has none."""

    def _one(self, text):
        score = super()._one(text)
        return Score(score.values, score.failures, {**score.facts, "answer": None if text == "odd" else text})


class Poll(Quiz):
    reward = Votes()


def test_majorities_are_counted_over_the_answers_that_a_reward_names():
    found = run(Plan(samples=8, ks=(1, 3, 8)), task=Poll())
    assert next(tally.answers for tally in found.tallies).keys() <= {"yes", "no"}
    result, tallies = found.sets["L2"], [t for t in found.tallies if t.set == "L2"]
    for k in (1, 3, 8):
        expected = [majority_at(["yes"] * t.correct + ["no"] * (8 - t.correct), {"yes"}, k) for t in tallies]
        assert result.majority_at[k].mean == pytest.approx(sum(expected) / 4)
        assert result.all_at[k].mean == pytest.approx(sum(all_at(8, t.correct, k) for t in tallies) / 4)
    record = found.record()
    assert record["eval/maj@1"] == pytest.approx(record["eval/accuracy"]) == pytest.approx(record["eval/pass^1_L2"])
    assert "eval/pass@2" not in record


def test_without_answers_there_is_no_majority():
    found = run(Plan(samples=4))
    assert found.sets["L2"].majority_at is None
    assert not [name for name in found.record() if "maj@" in name]


def test_a_problem_without_any_answer_has_a_vote_of_nobody():
    found = run(Plan(samples=4), sampler=Odd(), task=Poll())
    assert {tally.answers == {} for tally in found.tallies} == {True}
    assert found.record()["eval/maj@4"] == 0


def test_long_answers_stand_as_a_digest():
    members = [rollout({"correct": 1.0}).with_(facts={"answer": "a" * n}) for n in (100, 101, 101)]
    named = count(Group("p", prompt("p", 1, 1), (1,), tuple(members)), "L", answers=True).answers
    assert named["a" * 100] == (1, 1)
    assert sorted(value for name, value in named.items() if name.startswith("sha256:")) == [(2, 2)]


def test_a_k_beyond_the_samples_is_refused():
    with pytest.raises(ConfigError, match="k = 5: there are 4 samples"):
        run(Plan(samples=4, ks=(5,))).sets  # noqa: B018
    with pytest.raises(ConfigError, match="first: got -1"):
        run(Plan(first=-1))


def test_the_rewards_that_ship_name_their_answers():
    members = [Rollout(RolloutKey("p", 0), (), Stop.END, 9, text) for text in ("so 1,250.0 it is", "none", "-7/")]
    asked = Prompt("p", (Message("user", "?"),), "1250", "t")
    for reward, answers in (
        (NumberMatch(), ["1250", None, "-7"]),
        (ExactMatch(), ["so 1,250.0 it is", "none", "-7/"]),
    ):
        scores = asyncio.run(reward.score(asked, members))
        assert [score.facts["answer"] for score in scores] == answers
    closed = [
        Rollout(RolloutKey("p", 0), (), stop, 9, text)
        for text, stop in (("7.", Stop.END), ("7", Stop.END), ("7.", Stop.LENGTH))
    ]
    assert [score.facts["answer"] for score in asyncio.run(ClosedAnswer().score(asked, closed))] == ["7", None, None]
