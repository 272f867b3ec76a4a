r"""The reward `math`: whether the answer in a response is worth what the gold answer is, in whatever notation.

Most answers are decided by exact comparison of plain numbers. The rest goes to math-verify (extra `math`), whose parser can be
made to run for ever, so it works in a process that is killed when its time is up. Its own timeouts are signals, which neither
work outside of a main thread nor end every computation; they are off.
"""

from __future__ import annotations

import atexit
import importlib.util
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from covey.errors import DataError, MissingInputError
from covey.registry import component
from covey.rewards.failures import explain, fail, type_of
from covey.rewards.latex import BOX, find_boxed, match_brace, nesting, read_number, read_words, unwrap
from covey.rewards.match import Match
from covey.types import Prompt, Rollout, RolloutKey, Score, Stop

if TYPE_CHECKING:
    from covey.rewards.pool import Isolated

Verdict = Literal["correct", "wrong", "unparsable"]
FAR = 1e-5
"""Numbers that differ by more are different; math-verify calls some equal that agree to six decimals."""
DEEPEST = 60
"""More brackets inside each other are no answer."""
_CLASSES = {"timeout": "timeout", "crash": "crash", "memory": "crash", "exception": "crash"}
_FORMULA = ("$", r"\(", r"\[", BOX)


@component("reward", "math")
class MathMatch(Match):
    r"""1 iff the response's answer equals the gold answer as mathematics: `\boxed{\frac{1}{2}}` is worth 0.5.

    The answer is what stands in the last `\boxed{...}`; boxes close to each other are one answer with several values, so
    `\boxed{1}\boxed{2}` is right only where {1, 2} is. Without a box the last `longest` characters of the response are read: a
    formula or number after "answer is", else the last one. What cannot be read is wrong. The fact `class` is `correct`,
    `wrong`, `unparsable`, `timeout` or `crash`, the fact `answer` what was read.
    """

    longest: int = Field(
        default=4096,
        ge=16,
        le=1_000_000,
        description="longest answer that is read; a longer one in a box is unparsable",
        json_schema_extra={"unit": "characters"},
    )
    on_hang: Literal["fail", "wrong"] = Field(
        default="fail",
        description="an answer whose check is killed or crashes: fail leaves the rollout out, wrong makes it 0",
    )

    isolated: ClassVar[bool] = True
    together: ClassVar[bool] = False

    def model_post_init(self, _: Any) -> None:
        """Say now that math-verify is not there."""
        if importlib.util.find_spec("math_verify") is None:
            raise MissingInputError("reward math", "needs `pip install covey[math]` (math-verify)")

    def prepare(self) -> None:
        """Load what scoring needs, once for all processes that are forked from this one."""
        import math_verify  # noqa: F401

    def check(self, prompt: Prompt) -> None:
        """Raises DataError if the gold answer is absent or cannot be read."""
        reason = None
        if prompt.answer is None:
            reason = "the row has no answer"
        elif read_number(read_gold(prompt.answer)) is None:
            probe = Rollout(RolloutKey(prompt.id, 0), (), Stop.END, 0, f"{BOX}{{q_{{0}}}}")
            reason = _checker()._score(prompt, [probe])[0][0].failures.get("correct")
        if reason is not None:
            raise DataError(f"prompt {prompt.id}", reason.removeprefix("gold: "), "Give a number or a LaTeX formula.")

    def agrees(self, text: str, answer: str) -> bool:
        """Whether the verdict is `correct`. Raises ValueError if the gold answer cannot be read."""
        return self.judge(text, answer)[0] == "correct"

    def judge(self, text: str, answer: str) -> tuple[Verdict, str | None]:
        """The verdict on a response, and the answer that was read. Raises ValueError if the gold answer cannot be read."""
        gold, boxed = read_gold(answer), find_boxed(text)
        found = boxed if boxed is not None else text.strip()[-self.longest :]
        if not found or len(found) > self.longest:
            return "unparsable", None
        verdict = compare_plainly(gold, found)
        if verdict is not None:
            return verdict, normalise(found)
        return compare_algebraically(gold, f"{BOX}{{{found}}}" if boxed is not None else found)

    def settle(self, rollout: Rollout, score: Score) -> Score:
        """The score of an answer whose check was killed or crashed: its class, and a 0 if the user wants it so."""
        return self._settle(score)

    def _settle(self, score: Score) -> Score:
        kinds = {_CLASSES.get(type_of(reason), "") for reason in score.failures.values()} - {""}
        if not kinds:
            return score
        (kind,) = kinds
        if self.on_hang == "wrong":
            return Score({"correct": 0.0}, facts={"class": kind}, detail="The answer could not be checked.")
        return Score(failures=score.failures, facts={"class": kind}, detail=score.detail)

    def _compare(self, text: str, answer: str) -> Score:
        try:
            verdict, found = self.judge(text, answer)
        except ValueError as error:
            return fail(("correct",), f"gold: {error}")
        except Exception as error:  # a computer algebra raises what it likes on what a model wrote
            return self._settle(fail(("correct",), explain(error)))
        right = verdict == "correct"
        facts = {"class": verdict, "answer": found}
        return Score({"correct": float(right)}, facts=facts, detail=_explain(verdict, answer))


def _explain(verdict: Verdict, answer: str) -> str:
    if verdict == "unparsable":
        return f"No answer can be read in the response. The answer is {answer}."
    return "Right." if verdict == "correct" else f"The answer is {answer}."


def read_gold(answer: str) -> str:
    r"""The gold answer itself: of a worked solution what stands in its last box, or after `####`."""
    boxed = find_boxed(answer)
    return unwrap(boxed if boxed is not None else answer.rpartition("####")[2])


def compare_plainly(gold: str, found: str) -> Literal["correct", "wrong"] | None:
    """The verdict on texts that are equal, or are two plain numbers; None where that does not decide."""
    if read_words(found) == read_words(gold):
        return "correct"
    left, right = read_number(gold), read_number(found)
    if left is None or right is None:
        return None
    if left == right:
        return "correct"
    return "wrong" if abs(left - right) > FAR else None


def normalise(found: str) -> str:
    """An answer in the form in which equal numbers are equal texts."""
    number = read_number(found)
    return str(number) if number is not None else read_words(found)


def compare_algebraically(gold: str, found: str) -> tuple[Verdict, str | None]:
    """The verdict of math-verify on a text that holds an answer, and that answer. Raises ValueError for an unreadable gold.

    It may run for ever or fill the memory: only for processes that can be killed.
    """
    from math_verify import verify

    golds = _parse_gold(gold)
    if not golds:
        raise ValueError(f"the answer {gold[:60]!r} cannot be parsed")
    if nesting(found) > DEEPEST:
        return "unparsable", None
    answers = _parse(found)
    said = next((normalise(answer) for answer in answers if isinstance(answer, str)), None)
    for pair in ((known, answer) for known in golds for answer in answers):
        try:
            if verify(*pair, timeout_seconds=None, raise_on_error=True):
                return "correct", said
        except MemoryError:
            raise
        except Exception:  # two expressions that cannot be compared are not equal
            continue
    parsed = any(not isinstance(answer, str) for answer in answers)
    return ("wrong", said) if parsed else ("unparsable", None)


@lru_cache(maxsize=4096)
def _parse_gold(gold: str) -> tuple[Any, ...]:
    """The gold answer parsed, once; it is a formula unless it says itself where its formulas are."""
    gold = gold.replace(r"\$", "")
    boxed = gold if any(mark in gold for mark in _FORMULA) else f"{BOX}{{{gold}}}"
    whole = match_brace(f"{{{gold}}}", 0) == len(gold) + 1
    found = _parse(boxed) if gold and whole and nesting(gold) <= DEEPEST else ()
    return found if any(not isinstance(known, str) for known in found) else ()


def _parse(text: str) -> tuple[Any, ...]:
    """What math-verify makes of a text: an expression and its text, or only the text, or nothing."""
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # else it says that its timeouts are off
    try:
        return tuple(parse(text, parsing_timeout=None, raise_on_error=True))
    except MemoryError:
        raise
    except Exception:
        return ()


@lru_cache(maxsize=1)
def _checker() -> Isolated:
    """A process that reads gold answers before the run."""
    from covey.rewards.pool import Isolated, Limits

    pool = Isolated(MathMatch(), Limits(workers=1))
    atexit.register(pool.close)
    return pool
