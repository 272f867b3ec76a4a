"""Folders of covey in vLLM, in an environment of its own (`make interchange`): the same greedy tokens, three of three."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from covey.engines.loading import load_model
from tests.interchange.made import MAX_TOKENS, Made, greedy

PYTHON = os.environ.get("COVEY_VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not PYTHON, reason="`make interchange` makes an environment with vLLM and runs this"),
]


def ask(model: Path, prompts: list[tuple[int, ...]], adapter: Path | None = None) -> dict[str, Any]:
    """vLLM's greedy answers."""
    question = {
        "model": str(model),
        "adapter": str(adapter) if adapter else None,
        "prompts": prompts,
        "max_tokens": MAX_TOKENS,
    }
    done = subprocess.run(
        [PYTHON, str(Path(__file__).with_name("ask_vllm.py"))],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"vLLM {answer['version']}: {model.name} {adapter.name if adapter else ''}")
    return answer


def compare(folder: Path, answer: dict[str, Any]) -> None:
    """The same tokens as covey's sampler; vLLM leaves the end token of a response out or in, as its version likes."""
    loaded, ours = load_model(folder), greedy(folder)
    assert len({tokens for _, tokens in ours.values()}) > 1
    for (_, tokens), theirs in zip(ours.values(), answer["tokens"], strict=True):
        ended = tokens[-1] in loaded.stop_ids and len(theirs) == len(tokens) - 1
        assert tuple(theirs) == (tokens[:-1] if ended else tokens)
    first = next(iter(ours.values()))[0]
    assert answer["first_prompt"] == loaded.tokenizer.decode(first)


def test_the_model_of_a_run(made: Made) -> None:
    folder = made.full / "model"
    compare(folder, ask(folder, [prompt for prompt, _ in greedy(folder).values()]))


def test_an_exported_model_with_its_adapter_merged(made: Made) -> None:
    compare(made.merged, ask(made.merged, [prompt for prompt, _ in greedy(made.merged).values()]))


def test_the_base_with_the_adapter_of_a_run(made: Made) -> None:
    folder = made.lora / "model"
    prompts = [prompt for prompt, _ in greedy(folder).values()]
    compare(folder, ask(made.base, prompts, adapter=folder))
