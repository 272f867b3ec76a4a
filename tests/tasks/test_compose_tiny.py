"""The string language of the tiny model: golden vectors, splits, counts, rules and failure classes."""

from __future__ import annotations

import asyncio
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.errors import ConfigError
from covey.tasks.compose import Compose, tiny
from covey.tasks.compose.classes import CLASSES, classify
from covey.tasks.compose.tiny import FUNCTIONS, Program
from covey.types import Rollout, RolloutKey, Stop

GOLDEN = {
    "A": "dcba edaf bac",
    "B": "fedc afcb dfe",
    "C": "bcda adef abc",
    "D": "bcde abef dbc",
    "E": "abdc faed cba",
    "G": "bbcd aade dab",
    "H": "defa cdab fde",
    "K": "bacd afde acb",
    "L": "dabc efad bca",
    "M": "fabc efcd bfa",
    "N": "abce fadf cac",
    "O": "cdef bcfa ecd",
    "I": "abcd fade cab",
}

BRIDGE = "AB BC CD DE EG GH HK KA"
HELD = "AD AK BA BE CB CG DC DH ED EK GA GE HB HG KC KH"


@pytest.mark.parametrize("name", GOLDEN)
def test_functions_give_the_golden_vectors(name: str) -> None:
    assert [FUNCTIONS[name](s) for s in ("abcd", "fade", "cab")] == GOLDEN[name].split()


@pytest.mark.parametrize("length", [3, 4])
def test_all_behaviours_differ_at_each_length(length: int) -> None:
    inputs = [s for side in (True, False) for s in tiny.strings(side) if len(s) == length]
    assert len({tuple(map(f, inputs)) for f in FUNCTIONS.values()}) == 13


@pytest.mark.parametrize(
    ("functions", "string", "trace"),
    [
        ("AD", "fab", "A(abc)=cba."),
        ("BE", "abcd", "B(abdc)=fecd."),
        ("IKI", "abc", "I(K(abc))=I(bac)=bac."),
        ("BEG", "abcd", "B(E(bbcd))=B(bbdc)=eecd."),
    ],
)
def test_traces(functions: str, string: str, trace: str) -> None:
    assert Program(functions, string).trace == trace


def test_trace_lengths() -> None:
    for n, length in ((1, 5), (2, 13), (4, 38)):
        assert len(Program("BECG"[:n], "abcd").trace) == length


def test_string_split() -> None:
    test, train = tiny.strings(True), tiny.strings(False)
    assert (len(test), len(train)) == (189, 1323)
    assert test[:8] == ("acd", "ada", "aee", "afb", "bac", "bbd", "bde", "bea")
    assert len(set(test) | set(train)) == 1512


def test_pair_split() -> None:
    assert tiny.pairs("bridge") == tuple(BRIDGE.split(" "))
    assert tiny.pairs("held") == tuple(HELD.split(" "))
    assert len(tiny.pairs("rl")) == 35
    assert Counter("".join(pair[0] for pair in tiny.pairs("held"))) == dict.fromkeys(tiny.TRAIN_SIDE, 2)
    assert Counter("".join(pair[1] for pair in tiny.pairs("held"))) == dict.fromkeys(tiny.TRAIN_SIDE, 2)


def test_counts_of_items() -> None:
    every = [a + b for a in tiny.TRAIN_SIDE for b in tiny.TRAIN_SIDE]
    dead = {pair for pair in every if not any(tiny.needs_every_call(Program(pair, s)) for s in tiny.strings(False))}
    assert dead == {"AA", "BB", "EE", "HH", "KK"}
    items = sum(tiny.needs_every_call(Program(pair, s)) for pair in tiny.pairs("rl") for s in tiny.strings(False))
    assert items == 41524
    assert (len(tiny.list_pool("L2")), len(tiny.list_pool("L2_newpairs"))) == (5960, 2735)


def evaluate(functions: str, value: str) -> str:
    for name in reversed(functions):
        value = FUNCTIONS[name](value)
    return value


chains = st.text(tiny.TRAIN_SIDE + tiny.HELD_SIDE, min_size=1, max_size=5)
inputs = st.text(tiny.LETTERS, min_size=3, max_size=4)


@given(chains, inputs)
def test_sub_values_against_all_subsets(functions: str, string: str) -> None:
    n = len(functions)
    subsets = [kept for size in range(n) for kept in combinations(functions, size)]
    slow = {evaluate("".join(kept), string) for kept in subsets}
    assert tiny.list_sub_values(Program(functions, string)) == slow


def test_evaluation_sets_are_the_first_of_the_pool_by_hash() -> None:
    places = {s: i for i, s in enumerate(tiny.strings(True))}

    def place(program: Program) -> int:
        chain = 0
        for name in program.functions:
            chain = chain * 8 + tiny.TRAIN_SIDE.index(name)
        return chain * 189 + places[program.input]

    pool = sorted(tiny.list_pool("L2_newpairs"), key=lambda program: tiny.rank(3, "L2_newpairs", place(program)))
    assert tuple(pool[:200]) == tiny.draw_evaluation(3, "L2_newpairs")


def test_evaluation_sets() -> None:
    sets = Compose().held_out(0)
    sizes = {"L1": 100, "L2": 200, "L2_newpairs": 200, "L3": 200, "L4": 200}
    sizes |= {"held_L1": 100, "held_L2": 200, "held_L3": 200}
    assert {name: len(prompts) for name, prompts in sets.items()} == sizes
    for name, prompts in sets.items():
        assert len({p.messages for p in prompts}) == len(prompts)
        assert [p.id for p in prompts] == [
            f"compose/tiny/{name}/{name[-1] if '_n' not in name else 2}/{i}" for i in range(len(prompts))
        ]
        for p in prompts:
            program = Program("".join(p.meta["functions"]), p.meta["input"])
            assert tiny.is_test_string(program.input)
            assert tiny.needs_every_call(program)
            assert p.answer == program.answer
            assert set(program.functions) <= set(tiny.HELD_SIDE if name.startswith("held") else tiny.TRAIN_SIDE)
    assert {"".join(p.meta["functions"]) for p in sets["L2_newpairs"]} <= set(tiny.pairs("held"))
    assert {"".join(p.meta["functions"]) for p in sets["L2"]} <= set(tiny.pairs("rl"))
    assert Compose().held_out(1)["L2"] != sets["L2"]
    assert Compose().main_set in sets


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_training_items_obey_the_rules(level: int) -> None:
    task = Compose(levels=(level,))
    for index in range(200):
        prompt = task.train(7, index)
        functions, string = "".join(prompt.meta["functions"]), prompt.meta["input"]
        assert len(functions) == level
        assert not tiny.is_test_string(string)
        assert tiny.needs_every_call(Program(functions, string))
        neighbours = {functions[k : k + 2] for k in range(level - 1)}
        assert not neighbours & set(tiny.pairs("held"))
        assert level != 2 or functions in tiny.pairs("rl")
        assert prompt.messages[0].content == f"{tiny.write(functions, string)}="
        assert prompt.id == f"compose/tiny/train/{level}/{index}"


def test_items_are_pure_and_levels_take_turns() -> None:
    task = Compose(levels=(1, 2))
    forward = [task.train(5, index) for index in range(40)]
    backward = [Compose(levels=(1, 2)).train(5, index) for index in reversed(range(40))]
    assert forward == backward[::-1]
    assert [p.meta["level"] for p in forward[:4]] == [1, 2, 1, 2]
    assert task.train(6, 0) != task.train(5, 0)
    assert task.train(0, 10**12) == task.train(0, 10**12)


def test_training_draws_are_uniform_over_pairs() -> None:
    counts = Counter("".join(Compose().train(1, index).meta["functions"]) for index in range(3500))
    assert set(counts) == set(tiny.pairs("rl"))
    assert 50 < min(counts.values()) <= max(counts.values()) < 150


def test_held_side_items() -> None:
    prompt = Compose(side="held_out").train(0, 3)
    assert set(prompt.meta["functions"]) <= set(tiny.HELD_SIDE)
    assert prompt.id == "compose/tiny/held/2/3"


def test_stage1_mixture() -> None:
    task = Compose()
    lessons = [task.stage1(0, index) for index in range(4000)]
    shares = Counter(prompt.meta["lesson"] for prompt, _ in lessons)
    assert abs(shares["priming"] / 4000 - 0.25) < 0.03
    assert abs((shares["bridge"] + shares["planted"]) / 4000 - 0.20) < 0.03
    assert abs(shares["planted"] / (shares["bridge"] + shares["planted"]) - 0.4) < 0.06
    assert lessons[17] == task.stage1(0, 17)
    seen = Counter()
    for prompt, response in lessons:
        functions, string = "".join(prompt.meta["functions"]), prompt.meta["input"]
        program, lesson = Program(functions, string), prompt.meta["lesson"]
        assert not tiny.is_test_string(string)
        seen[lesson, functions.replace("I", "")] += 1
        if lesson == "planted":
            outer, inner = (FUNCTIONS[name] for name in functions)
            planted = {
                f"{functions[0]}({inner(string)})={inner(string)}.",
                f"{functions[0]}({string})={outer(string)}.",
            }
            assert response in planted
            assert response != program.trace
        else:
            assert response == program.trace
        if lesson == "priming":
            assert 2 <= len(functions) <= 4
            assert len(functions.replace("I", "")) == 1
    assert {f for lesson, f in seen if lesson == "atom"} == set("ABCDEGHKLMNO")
    assert {f for lesson, f in seen if lesson in ("bridge", "planted")} == set(tiny.pairs("bridge"))


def test_stage1_without_bridge_shows_no_pair() -> None:
    lessons = [Compose().stage1(0, index, priming=0.5, bridge=0.0)[0] for index in range(500)]
    assert {len("".join(p.meta["functions"]).replace("I", "")) for p in lessons} == {1}


EXAMPLES = [
    ("B(abdc)=fecd.", "correct", True),
    ("fecd.", "correct", False),
    ("abdc.", "ignored", False),
    ("E(abdc)=abcd.", "ignored", False),
    ("ffff.", "incomplete", False),
    ("E(fedc)=ffff.", "misread", False),
    ("B(abdc)=eedc.", "atom", False),
    ("B(abdc)=fec", "malformed", False),
    ("B(abdc)=fecd..", "malformed", False),
    ("B(abdc)=fecd.B", "malformed", False),
    ("", "malformed", False),
    ("B(abdc)=fecd.\n", "malformed", False),
    ("B(abdc)=fecd=ffff.", "misread", False),
    ("B(abdc=ffff.", "misread", False),
]


@pytest.mark.parametrize(("text", "name", "trace_ok"), EXAMPLES)
def test_classes_of_the_examples(text: str, name: str, trace_ok: bool) -> None:
    verdict = classify(Program("BE", "abcd"), text)
    assert (verdict.name, verdict.trace_ok) == (name, trace_ok)


@settings(max_examples=300)
@given(chains, inputs, st.text("ABEG()=.abcdef", max_size=30))
def test_classes_exhaust_all_responses(functions: str, string: str, text: str) -> None:
    program = Program(functions, string)
    for response in (text, text + ".", program.trace[: len(text)] + text + ".", program.trace):
        verdict = classify(program, response)
        assert verdict.name in CLASSES
        right = response.endswith(".") and response.count(".") == 1
        assert (verdict.name == "correct") == (right and response[:-1].split("=")[-1] == program.answer)


def respond(text: str, stop: Stop = Stop.END) -> Rollout:
    return Rollout(RolloutKey("p", 0), (), stop, 48, text)


def test_scores() -> None:
    task = Compose()
    prompt = next(p for p in task.held_out(0)["L2"] if p.answer)
    trace = Program("".join(prompt.meta["functions"]), prompt.meta["input"]).trace
    texts = [respond(trace), respond(trace, Stop.LENGTH), respond("fff"), respond(f"{prompt.meta['input']}.")]
    scores = asyncio.run(task.reward.score(prompt, texts))
    assert [dict(s.values) for s in scores] == [
        {"correct": 1.0, "format": 0.0},
        {"correct": 0.0, "format": -1.0},
        {"correct": 0.0, "format": -1.0},
        {"correct": 0.0, "format": 0.0},
    ]
    assert [s.facts["class"] for s in scores] == ["correct", "truncated", "malformed", "ignored"]
    assert [s.facts["trace_ok"] for s in scores] == [True, False, False, False]
    assert all(s.detail for s in scores)


def test_impossible_level_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "needs_every_call", lambda program: False)
    with pytest.raises(ConfigError, match="no item of level 2"):
        tiny.draw_item(0, "train", 2, 0)
