"""The lint of chat templates: every complaint on a template made for it, and none on one that keeps its word."""

from __future__ import annotations

from typing import Any

import pytest

from covey.errors import ConfigError
from covey.models.vocabulary import TEMPLATE, build_tokenizer
from covey.preflight.template import lint_template

END = 1
"""The id of `<|end|>`."""

FORGETS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}"
    "{% if m['role'] == 'assistant' and not loop.last %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Thoughts are taken out of earlier turns."""
REWRITES = TEMPLATE.replace("message['content']", "(message['content'] if loop.last else message['content'] | upper)")
"""Every message but the last one is rewritten."""
OPENS_THOUGHT = TEMPLATE.replace("'<|assistant|>' }}{% endif %}", "'<|assistant|><think>\n' }}{% endif %}")
KEEPS_EMPTY_THOUGHT = TEMPLATE.replace(
    "'<|assistant|>' }}{% endif %}", "'<|assistant|><think>\n\n</think>\n\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE
DROPS_SYSTEM = TEMPLATE.replace(
    "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
)
NEVER_CLOSES = TEMPLATE.replace("{{ '<|end|>' }}", "{{ '<|tool|>' }}")
NO_TURN = TEMPLATE.partition("{% if add_generation_prompt %}")[0]


def lint(template: str | None, **special: Any) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    for name, value in special.items():
        setattr(tokenizer, name, value)
    return lint_template(tokenizer, (END,))


def test_the_template_of_the_embedded_models_keeps_its_word() -> None:
    report = lint(TEMPLATE)
    assert report.append_only
    assert (report.system, report.generation_prompt, report.closes) == ("", "<|assistant|>", True)
    assert (report.bos, report.bos_written, report.stops) == (0, 0, ("<|end|>",))
    assert report.plain()["append_only"] is True


def test_a_template_that_forgets_thoughts_is_append_only_without_them_alone() -> None:
    report = lint(FORGETS)
    assert not report.append_only
    assert report.diverges == ""
    assert report.diverges_thinking.startswith("turn 1: after '")
    assert "'<think>\\nFirst thought" in report.diverges_thinking  # what was sampled
    assert "later 'First reply." in report.diverges_thinking  # what is left of it


def test_a_template_that_rewrites_the_past_says_where() -> None:
    report = lint(REWRITES)
    assert report.diverges.startswith("turn 1: after '<|user|>F'")
    assert "irst question?" in report.diverges
    assert "IRST QUESTION?" in report.diverges


def test_a_thought_that_the_template_opens_is_gone_on_with() -> None:
    """The model continues `<think>`; a history that keeps the whole thought is then append-only."""
    report = lint(OPENS_THOUGHT)
    assert report.diverges_thinking == ""
    assert report.diverges.startswith("turn 1")  # a reply without a thought is not what stands in the history


def test_an_empty_thought_that_only_the_question_holds_is_found() -> None:
    assert "</think>" in lint(KEEPS_EMPTY_THOUGHT).diverges


@pytest.mark.parametrize(
    ("template", "told"), [(NO_SYSTEM, "no system role"), (DROPS_SYSTEM, "it is left out"), (TEMPLATE, "")]
)
def test_what_becomes_of_a_system_message(template: str, told: str) -> None:
    found = lint(template).system
    assert told in found
    assert bool(found) == bool(told)


def test_a_reply_that_no_stop_token_closes() -> None:
    report = lint(NEVER_CLOSES)
    assert (report.closes, report.closed_by) == (False, "<|tool|>")
    assert lint(NO_TURN).generation_prompt == ""


@pytest.mark.parametrize(("written", "kept"), [(0, 0), (1, 1), (2, 1), (3, 2)])
def test_bos_tokens_are_counted_before_and_after_one_is_taken_away(written: int, kept: int) -> None:
    report = lint("{{ '<|system|>' * " + str(written) + " }}" + TEMPLATE, bos_token="<|system|>")
    assert (report.bos_written, report.bos) == (written, kept)


def test_without_a_template_there_is_nothing_to_diverge() -> None:
    report = lint(None)
    assert not report.exists
    assert report.append_only
    assert report.stops == ("<|end|>",)


def test_a_template_that_raises_says_so_in_one_line() -> None:
    with pytest.raises(ConfigError, match="boom") as failed:
        lint("{{ raise_exception('boom') }}")
    assert "\n" not in str(failed.value)
