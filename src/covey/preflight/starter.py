"""The files that `covey new` writes, as text with $NAMES to fill in."""

from __future__ import annotations

import json
from string import Template

from covey.random import Draws
from covey.tasks.compose.tiny import Program, needs_every_call, strings

PAIRS = ("AD", "HA")
"""Two pairs of functions that the embedded model knows one by one, and hardly ever both in a row."""
ROWS = 24

SETTINGS = Template("""\
# What `covey train $name` does. Every key with its unit, range and default: covey config schema
model: $model  # an embedded model, a folder, or a hub id
$data
reward: reward.py:score  # a number per response; try it: python reward.py
recipe: $recipe  # the method; others: covey recipes list
steps: $steps  # each step draws new responses and learns from them
budget.prompts_per_step: 8  # prompts of a step ...
budget.samples_per_prompt: 8  # ... with so many responses each: they are compared with each other
budget.sampling.max_tokens: $max_tokens  # longest response
budget.optimizer.lr: $lr  # peak learning rate
budget.eval_every: 50  # steps between evaluations on the held-out rows
task.held_share: 0.25  # share of the rows that is never trained on
""")

REWARD = Template('''\
"""The reward of $name: what a response is worth. Try it with `python reward.py` or `pytest reward.py`."""


def score(completion: str, answer: str) -> float:
    """1 for the right answer, 0 for a wrong one; None would mean: this response cannot be scored.

    Parameters are filled by name: completion, answer, prompt, or any other column of the data.
$about
    """
    return float($expression == answer)


def test_the_right_answer_scores_high() -> None:
    assert score($right, $answer) == 1.0


def test_a_wrong_answer_scores_low() -> None:
    assert score($wrong, $answer) == 0.0


def test_an_empty_response_scores_low() -> None:
    assert score("", $answer) == 0.0


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("ok", name)
''')

UNANSWERED = Template('''\
"""The reward of $name: what a response is worth. Try it with `python reward.py` or `pytest reward.py`."""


def score(completion: str) -> float:
    """Between 0 and 1: here, shorter is better. Write your own; None would mean: this response cannot be scored.

    Parameters are filled by name: completion, prompt, or any other column of the data ($columns).
    """
    return 1.0 / (1.0 + len(completion) / 20) if completion.strip() else 0.0


def test_a_good_response_scores_high() -> None:
    assert score("ok") > 0.5


def test_a_bad_response_scores_low() -> None:
    assert score("and so on " * 20) < 0.5


def test_an_empty_response_scores_low() -> None:
    assert score("") == 0.0


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print("ok", name)
''')

README = Template("""\
# $name

1. Put your problems into `$data_file`, one per line. Say in `reward.py` what a response is worth; `python reward.py` tests it.
2. `covey check $name` looks at data, reward, template, batch and memory in seconds, without loading the model.
3. `covey train $name` trains as `run.yaml` says; Ctrl-C saves, `covey train $name --resume` goes on.
4. `covey show runs/$name-1` tells how it went, `covey eval runs/$name-1` asks the held-out rows again.
5. `runs/$name-1/model` is an ordinary transformers folder.
$about
""")

ABOUT_ROWS = """
The rows that are here: `A` turns a string round, `D` moves each of its letters one on in the alphabet a to f (after f comes a),
`H` moves them three on. The embedded model knows each of the three; doing two in a row is what it learns.
"""


def sample_rows() -> str:
    """Problems such as `A(D(abcd))=` with answers, as JSON lines: always the same."""
    rows: dict[str, str] = {}
    index = 0
    while len(rows) < ROWS:
        program = Program(PAIRS[len(rows) % len(PAIRS)], Draws(0, "new-task", index).choice(strings(test=False)))
        index += 1
        if needs_every_call(program):
            rows[f"{program.text}="] = program.answer
    return "".join(json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows.items())
