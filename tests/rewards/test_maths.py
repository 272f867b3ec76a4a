"""The reward `math`: what is right, what is not an answer, and answers that no verifier survives."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.errors import ConfigError, DataError, MissingInputError
from covey.registry import build, dump
from covey.rewards import MathMatch, build_reward
from covey.rewards.failures import fail
from covey.rewards.latex import find_boxed, match_brace, nesting, read_number, unwrap
from covey.rewards.pool import Isolated, Limits
from covey.types import Message, Prompt, Rollout, RolloutKey, Score, Stop


def prompt(answer: str | None) -> Prompt:
    return Prompt("p/0", (Message("user", "?"),), answer, "rows")


def rollout(text: str, index: int = 0) -> Rollout:
    return Rollout(RolloutKey("p/0", index), (), Stop.END, 4096, text)


def score(reward: Any, text: str, answer: str | None) -> Score:
    (result,) = asyncio.run(reward.score(prompt(answer), [rollout(text)]))
    return result


SEMANTICS = [
    # one box, in the notations of a number
    (r"so \boxed{4}", "4", "correct"),
    (r"\boxed{ 4 }", "4", "correct"),
    (r"$$\boxed{1,250.0}$$", "1250", "correct"),
    (r"\boxed{\frac{1}{2}}", "0.5", "correct"),
    (r"\boxed{-\dfrac12}", "-1/2", "correct"),
    (r"\boxed{\$5}", "5", "correct"),
    (r"\boxed{0.333333}", "1/3", "correct"),
    (r"\boxed{0.3333}", "1/3", "wrong"),
    (r"\boxed{50\%}", "0.5", "correct"),
    (r"\boxed{5}", "4", "wrong"),
    # several answers are not one of them
    (r"\boxed{1}\boxed{2}\boxed{3}", "3", "wrong"),
    (r"\boxed{1}\boxed{2}\boxed{3}", r"\{1,2,3\}", "correct"),
    (r"\boxed{2 or 3}", "2", "wrong"),
    (r"\boxed{2\text{ or }3}", "3", "wrong"),
    (r"\boxed{2}, or perhaps \boxed{3}", "3", "wrong"),
    (
        r"first I had \boxed{3}. " + "But that forgets the other root, which is larger. " * 2 + r"So \boxed{4}",
        "4",
        "correct",
    ),
    (
        r"first I had \boxed{3}. " + "But that forgets the other root, which is larger. " * 2 + r"So \boxed{4}",
        "3",
        "wrong",
    ),
    # equations, symbols, sets
    (r"\boxed{x=2}", "2", "correct"),
    (r"\boxed{2}", "x=2", "correct"),
    (r"\boxed{(x+1)^2}", "x^2+2x+1", "correct"),
    (r"\boxed{(x+1)^2}", "x^2+2x", "wrong"),
    (r"so $2\sqrt{2}$", r"\sqrt{8}", "correct"),
    (r"\boxed{(2,1)}", "(1,2)", "wrong"),
    (r"\boxed{\{2,1\}}", r"\{1,2\}", "correct"),
    (r"\boxed{[1,2)}", "[1,2)", "correct"),
    (r"\boxed{\text{east}}", "east", "correct"),
    (r"\boxed{west}", r"\text{east}", "wrong"),
    # no box
    ("answer is 3, no 2", "3", "correct"),
    ("7", "7", "correct"),
    ("$7$", "7", "correct"),
    ("The answer is 1/2.", "0.5", "correct"),
    # gold answers inside of solutions
    (r"\boxed{7}", r"Adding gives \boxed{7}.", "correct"),
    (r"\boxed{72}", "48 + 24 = 72\n#### 72", "correct"),
    # no answer
    ("", "4", "unparsable"),
    (r"\boxed{}", "4", "unparsable"),
    (r"\boxed{4", "4", "unparsable"),
    ("I do not know.", "4", "unparsable"),
    ("(" * 3000, "4", "unparsable"),
    (r"\boxed{" + "4" * 5000 + "}", "4", "unparsable"),
]


@pytest.mark.parametrize(("text", "answer", "verdict"), SEMANTICS, ids=lambda v: v[:30])
def test_verdicts(text: str, answer: str, verdict: str) -> None:
    result = score(MathMatch(), text, answer)
    assert (result.facts["class"], result.failures) == (verdict, {})
    assert (result.facts["answer"] is None) == (verdict == "unparsable")
    assert result.values == {"correct": float(verdict == "correct")}
    assert result.detail == "Right." or answer in result.detail


def test_the_answer_that_was_read_is_a_fact_for_votes() -> None:
    texts = [r"\boxed{0.50}", r"so $\frac{1}{2}$.", r"\boxed{\text{east}}", "the answer is 2/4", r"\boxed{x+1}"]
    found = [score(MathMatch(), text, "7").facts["answer"] for text in texts]
    assert found == ["1/2", "1/2", "east", "1/2", "x+1"]


@pytest.mark.parametrize("answer", ["{", r"\frac{1}{", "", "  ", "$", "(" * 100])
def test_a_gold_answer_that_cannot_be_read_is_a_failure_and_not_a_zero(answer: str) -> None:
    result = score(MathMatch(), r"\boxed{x+1}", answer)
    assert result.values == {}
    assert "cannot be parsed" in result.failures["correct"]


def test_without_an_answer_there_is_nothing_to_compare_with() -> None:
    assert "no answer" in score(MathMatch(), "4", None).failures["correct"]


@pytest.mark.distributed
def test_rows_are_refused_before_the_run() -> None:
    reward = MathMatch()
    for answer in ("4", r"\sqrt{2}", "x^2+1"):
        reward.check(prompt(answer))
    for answer in (None, "", r"\frac{1}{"):
        with pytest.raises(DataError, match=r"^prompt p/0: .*Give a number or a LaTeX formula\.") as caught:
            reward.check(prompt(answer))
        assert "\n" not in str(caught.value)


def test_off_the_main_thread_the_verdicts_are_the_same() -> None:
    found: list[Score] = []
    thread = threading.Thread(target=lambda: found.extend(score(MathMatch(), t, a) for t, a, _ in SEMANTICS))
    thread.start()
    thread.join()
    assert [result.facts["class"] for result in found] == [verdict for *_, verdict in SEMANTICS]


def test_what_a_killed_check_is_worth_is_the_users_choice() -> None:
    for reason, name in (("timeout: 2 s", "timeout"), ("crash: SIGSEGV", "crash"), ("memory: ran out", "crash")):
        failed = fail(("correct",), reason)
        left_out, wrong = (
            MathMatch().settle(rollout(""), failed),
            MathMatch(on_hang="wrong").settle(rollout(""), failed),
        )
        assert (left_out.values, left_out.failures, left_out.facts) == ({}, {"correct": reason}, {"class": name})
        assert (wrong.values, wrong.failures, wrong.facts) == ({"correct": 0.0}, {}, {"class": name})
    gold = fail(("correct",), "gold: the answer '{' cannot be parsed")
    assert MathMatch(on_hang="wrong").settle(rollout(""), gold) == gold


def test_it_is_a_kind_with_options_that_survive_a_dump() -> None:
    reward = build_reward({"kind": "math", "longest": 100, "on_hang": "wrong"})
    assert build("reward", dump(reward), "reward") == reward  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="on_hang"):
        build_reward({"kind": "math", "on_hang": "zero"})


def test_without_math_verify_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingInputError, match=r"reward math: needs `pip install covey\[math\]` \(math-verify\)"):
        build_reward("math")


def test_nothing_heavy_is_loaded_until_it_is_needed() -> None:
    code = (
        "import sys, asyncio; from covey.rewards import MathMatch; m = MathMatch();"
        "print(m.agrees(r'\\boxed{4}', '4'), m.agrees('5', '1/2'), 'sympy' in sys.modules, 'math_verify' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["True", "False", "False", "False"], done.stderr


# Reading


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_numbers_are_read_exactly_in_every_notation(top: int, bottom: int) -> None:
    sign, size = ("-" if top < 0 else ""), abs(top)
    whole, exact = Fraction(top), Fraction(top, bottom)
    assert {read_number(t) for t in (f"{top}", f"{top:,}", f"${top}$", f" {top}.00 ", f"{sign}\\${size}")} == {whole}
    forms = (f"{top}/{bottom}", f"{sign}\\frac{{{size}}}{{{bottom}}}", f"\\({sign}\\dfrac{{{size}}}{{{bottom}}}\\)")
    assert {read_number(t) for t in forms} == {exact}


@pytest.mark.parametrize(
    "text", ["", "$", "1/0", r"\frac{1}{0}", "--1", "1,23", "0,123", "٣", "50%", "1e3", "x", "1" * 501]
)
def test_what_is_no_plain_number(text: str) -> None:
    assert read_number(text) is None


@given(st.text(r"\boxed{}$()[]/,. 12fracx", max_size=80))
def test_reading_never_raises(text: str) -> None:
    find_boxed(text), read_number(text), unwrap(text), nesting(text)


def balanced_boxes(text: str) -> str | None:
    """The content of the only box of a text, by counting braces one letter at a time."""
    start = text.index("\\boxed{") + 7
    depth, out = 1, ""
    for letter in text[start:]:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return out.strip()
        out += letter
    return None


@given(st.text("ab {}", max_size=20), st.text("ab {}", max_size=40))
def test_boxes_end_at_their_own_brace(before: str, inside: str) -> None:
    text = f"{before}\\boxed{{{inside}"
    assert find_boxed(text) == balanced_boxes(text)


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 20000, "\\boxed{}" * 20000, "{" * 10**5, "1," * 50000, "\\frac{1}{" * 20000]
)
def test_reading_is_quick_on_long_texts(text: str) -> None:
    begin = time.perf_counter()
    find_boxed(text), read_number(text), nesting(text), unwrap(text), match_brace(text, 0)
    assert time.perf_counter() - begin < 0.5


# Agreement with math-verify


def pairs(seed: int, count: int) -> Iterator[tuple[str, str, bool]]:
    """Gold answers, responses, and whether they agree: known by construction, without any algebra system."""
    draw = random.Random(seed)
    templates = [r"\boxed{%s}", r"So we get $\boxed{%s}$.", r"Adding both, $$\boxed{%s}$$", "The answer is $%s$."]
    for _ in range(count):
        gold, same, other = draw.choice(MAKERS)(draw)
        right = draw.random() < 0.6
        yield gold, draw.choice(templates) % (same if right else other), right


def _integer(draw: random.Random) -> tuple[str, str, str]:
    n = draw.randint(-5000, 5000)
    return str(n), draw.choice([f"{n}", f"{n}.0", f"{n:,}", f"{2 * n}/2"]), str(n + draw.choice([-10, -1, 1, 2, 100]))


def _fraction(draw: random.Random) -> tuple[str, str, str]:
    a, b, k = draw.randint(-50, 50), draw.randint(2, 40), draw.randint(1, 5)
    sign = "-" if a < 0 else ""
    same = draw.choice(
        [rf"{sign}\frac{{{abs(a) * k}}}{{{b * k}}}", rf"{sign}\dfrac{{{abs(a)}}}{{{b}}}", f"{a * k}/{b * k}"]
    )
    return rf"{sign}\frac{{{abs(a)}}}{{{b}}}", same, rf"\frac{{{abs(a) + 1}}}{{{b + 1}}}" if a != b and a >= 0 else "7"


def _decimal(draw: random.Random) -> tuple[str, str, str]:
    n, d = draw.randint(-9999, 9999), draw.randint(1, 3)
    text = f"{n / 10**d:.{d}f}"
    return text, draw.choice([f"{text}0", text]), f"{(n + 7) / 10**d:.{d}f}"


def _root(draw: random.Random) -> tuple[str, str, str]:
    k, m = draw.randint(2, 9), draw.choice([2, 3, 5, 7])
    return (
        rf"{k}\sqrt{{{m}}}",
        draw.choice([rf"\sqrt{{{k * k * m}}}", rf"\sqrt{{{m}}}\cdot {k}"]),
        rf"{k}\sqrt{{{m + 4}}}",
    )


def _polynomial(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randint(1, 9), draw.randint(1, 9)
    return f"x^2+{a + b}x+{a * b}", draw.choice([f"(x+{a})(x+{b})", f"{a * b}+{a + b}x+x^2"]), f"(x+{a})(x+{b + 1})"


def _point(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randint(-9, 9), draw.randint(10, 19)
    return f"({a}, {b})", f"({a},{2 * b}/2)", f"({b},{a})"


def _set(draw: random.Random) -> tuple[str, str, str]:
    a, b, c = draw.sample(range(-20, 20), 3)
    return rf"\{{{a}, {b}, {c}\}}", rf"\{{{c}, {a}, {b}\}}", rf"\{{{a}, {b}\}}"


def _equation(draw: random.Random) -> tuple[str, str, str]:
    n = draw.randint(-99, 99)
    return str(n), f"x={n}", f"x={n + 3}"


def _power(draw: random.Random) -> tuple[str, str, str]:
    b, e = draw.randint(2, 9), draw.randint(2, 5)
    return str(b**e), f"{b}^{{{e}}}", f"{b}^{{{e + 1}}}"


def _pi(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randint(1, 20), draw.randint(2, 9)
    return rf"\frac{{{a}\pi}}{{{b}}}", rf"\frac{{{a}}}{{{b}}}\pi", rf"\frac{{{a + 1}\pi}}{{{b}}}"


def _interval(draw: random.Random) -> tuple[str, str, str]:
    a, b = draw.randint(-20, 0), draw.randint(1, 20)
    return f"[{a},{b})", f"[{a}, {b})", f"[{a},{b}]"


MAKERS = [
    _integer, _fraction, _decimal, _root, _polynomial, _point, _set, _equation, _power, _pi, _interval, _integer, _integer,
]  # fmt: skip


def reference(gold: str, text: str) -> bool:
    """math-verify alone, as its documentation has it."""
    from math_verify import parse, verify

    known, found = parse(f"\\boxed{{{gold}}}", parsing_timeout=None), parse(text, parsing_timeout=None)
    return bool(verify(known, found, timeout_seconds=None))


@pytest.mark.slow
def test_honest_answers_get_the_verdict_of_math_verify() -> None:
    reward, total, agree, true = MathMatch(), 1500, 0, 0
    odd = []
    for gold, text, right in pairs(0, total):
        ours, theirs = reward.agrees(text, gold), reference(gold, text)
        agree, true = agree + (ours == theirs), true + (ours == right)
        if ours != theirs or ours != right:
            odd.append((gold, text, right, ours, theirs))
    print(f"agreement {agree}/{total}, truth {true}/{total}", *odd[:20], sep="\n")
    assert agree / total >= 0.995, odd[:10]
    assert true / total >= 0.995, odd[:10]


# Answers that are attacks


def attacks() -> list[str]:
    towers = [
        "9^{9^9}",
        "9^{9^{9^9}}",
        "9**9**9**9",
        "2^{2^{2^{2^{2^2}}}}",
        "(9^9)^{9^9}",
        "-9^{9^{9}}",
        r"e^{e^{e^{e^{9}}}}",
    ]
    big = [
        "10000000!", "(10^6)!", "100000!!", r"\binom{10000000}{5000000}", r"\binom{10^9}{10^8}",
        r"\sum_{k=1}^{10000000} \frac{1}{k}", r"\sum_{k=1}^{10^7} k^{k}", r"\prod_{k=1}^{10^6} k",
        r"\int_0^1\int_0^1\int_0^1\int_0^1 e^{xyzw} dx dy dz dw", r"\int \frac{\sin(x^x)}{\ln(x^{x^x})} dx",
        r"\lim_{x \to 0} \frac{\sin(\sin(\sin(\sin x)))-x}{x^{15}}", r"\sin(10^{10^{10}})", r"\log_{2}(3^{10^{9}})",
        r"\sqrt[1000000]{2^{10000000}}", "0." + "3" * 3900, "7" * 4000, "1/" + "3" * 4000, "9" * 4200, "1e1000000000",
    ]  # fmt: skip
    deep = [
        "(" * 3000 + "1" + ")" * 3000, "(" * 50 + "1" + ")" * 50, r"\frac{1}{" * 400 + "1" + "}" * 400,
        r"\frac{1}{1+" * 50 + "1" + "}" * 50, r"\sqrt{" * 55 + "2" + "}" * 55, "{" * 2000, "[" * 4000, r"\left(" * 500,
        "|" * 2000, "x^{" * 58 + "x" + "}" * 58,
    ]  # fmt: skip
    long = [
        ",".join(map(str, range(5000))), r"\{" + ",".join(map(str, range(3000))) + r"\}", "1+" * 2000 + "1", "x" * 4000,
        "+".join(f"x_{{{k}}}" for k in range(500)), "(x+1)" * 300, "(x+y+z)^{200}", "1=" * 1500 + "1", "<".join("abc" * 300),
        r"\begin{pmatrix}" + r"\\".join("&".join(["1"] * 40) for _ in range(40)) + r"\end{pmatrix}", "a,b;" * 800, "1/2/" * 900,
    ]  # fmt: skip
    odd = [
        "\u0000", "\ud800".encode("utf-8", "replace").decode(), "１２", "²", "√2", "∞", "∑", "\u202e12", "½", "−5", "😀" * 500,
        "\\" * 3000, "$" * 3000, "\\boxed{" * 500, "%" * 3000, "\\text{" * 300, "__import__('os').system('exit')",
        "(lambda: 1)()", "\n" * 4000, "exec('1')",
    ]  # fmt: skip
    return towers + big + deep + long + odd


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.long
def test_attacks_end_in_time_and_are_never_right() -> None:
    answers, limit = attacks(), 3.0
    assert len(answers) >= 60
    waits, classes = [], []
    with Isolated(MathMatch(), Limits(workers=1, timeout_s=limit)) as pool:

        async def ask(text: str, gold: str) -> Score:
            return (await pool.score(prompt(gold), [rollout(text)]))[0]

        asyncio.run(ask(r"\boxed{\sqrt{2}}", r"\sqrt{2}"))
        for answer in answers:
            begin = time.perf_counter()
            result = asyncio.run(ask(rf"\boxed{{{answer}}}", r"\sqrt{2}+1"))
            waits.append(time.perf_counter() - begin)
            classes.append(str(result.facts["class"]))
            assert result.values.get("correct", 0.0) == 0.0, answer[:60]
            assert bool(result.failures) == (classes[-1] in ("timeout", "crash")), (answer[:60], result)
        assert asyncio.run(ask(r"\boxed{1+\sqrt 2}", r"\sqrt{2}+1")).values == {"correct": 1.0}
    tally = {name: classes.count(name) for name in sorted(set(classes))}
    print(f"{len(answers)} attacks, longest {max(waits):.2f} s, {tally}")
    assert max(waits) <= limit + 1.0
    assert {"wrong", "unparsable", "timeout"} <= set(classes)


@pytest.mark.distributed
def test_one_endless_answer_costs_the_others_nothing() -> None:
    texts = [r"\boxed{\sqrt{8}}", r"\boxed{9^{9^{9^9}}}", r"\boxed{3}", r"\boxed{2\sqrt2}"]
    for on_hang, middle in (("fail", {}), ("wrong", {"correct": 0.0})):
        with Isolated(MathMatch(on_hang=on_hang), Limits(workers=1, timeout_s=2.0)) as pool:
            scores = asyncio.run(pool.score(prompt(r"2\sqrt{2}"), [rollout(t, i) for i, t in enumerate(texts)]))
        assert [s.values for s in scores] == [{"correct": 1.0}, middle, {"correct": 0.0}, {"correct": 1.0}]
        assert scores[1].facts == {"class": "timeout"}
