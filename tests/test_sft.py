"""Supervised fine-tuning: the loss against a slow oracle, slices, determinism, files and errors."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from covey import sft
from covey.errors import ConfigError, CoveyError, DataError, DivergedError, MissingInputError, OutputError
from covey.models.vocabulary import build_model, build_tokenizer
from covey.sft import Example, SftPlan, accumulate, cut, encode, read_lessons, schedule
from covey.types import Message, Prompt

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with new weights."""
    path = tmp_path_factory.mktemp("models") / "new"
    sft.save(build_model(width=32, layers=2, heads=2, inner=48, seed=1), build_tokenizer(), path)
    return path


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Twelve rows of both forms and unequal lengths."""
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"{a}+{b}=", "response": f"{a + b}."} for a in (1, 22, 333) for b in (4, 5, 66)]
    lines += [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": f"{a}?"}], "response": f"{a}"}
        for a in ("x", "yy", "z" * 30)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(7, 106, (count,), generator=generator).tolist())

    return [Example(ids(p), ids(r)) for p, r in ((3, 5), (9, 1), (2, 40), (4, 4), (30, 2), (1, 1), (6, 12))]


def slow_loss(model: torch.nn.Module, batch: list[Example]) -> torch.Tensor:
    """The definition, token by token: each response token predicted from its own prefix alone, no batch and no padding."""
    terms = []
    for example in batch:
        whole = example.prompt + example.response
        for t in range(len(example.prompt), len(whole)):
            logits = model(input_ids=torch.tensor([whole[:t]])).logits[0, -1]
            terms.append(-torch.log_softmax(logits, -1)[whole[t]])
    return torch.stack(terms).mean()


def flat_gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("slice_tokens", [1, 60, 100_000])
def test_loss_and_gradient_are_those_of_the_definition_however_rows_are_cut(slice_tokens: int) -> None:
    model = build_model(width=32, layers=2, heads=2, inner=48, seed=1).double()
    batch = examples()
    expected = slow_loss(model, batch)
    expected.backward()
    gradient = flat_gradient(model)
    model.zero_grad()
    loss, hits, tokens = accumulate(model, batch, slice_tokens)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    assert tokens == sum(len(example.response) for example in batch)
    assert 0 <= hits <= tokens
    difference = (flat_gradient(model) - gradient).norm() / gradient.norm()
    assert difference < 1e-6  # the model's own normalisation works in float32


def test_prompt_tokens_are_context_only() -> None:
    model = build_model(width=32, layers=1, heads=2, inner=48, seed=1)
    _, _, one = accumulate(model, [Example((8, 9, 10), (11, 1))], 1000)
    assert one == 2


def test_slices_hold_every_row_once_within_the_budget_and_with_little_padding() -> None:
    batch = examples()
    parts = list(cut(batch, 90))
    assert sorted(e.length for part in parts for e in part) == sorted(e.length for e in batch)
    for part in parts:
        widest = max(e.length for e in part)
        assert len(part) == 1 or len(part) * widest <= 90
        assert all(2 * e.length > widest for e in part)


def test_schedule_by_hand() -> None:
    plan = SftPlan(steps=7, lr=1.0, warmup_steps=2, final_lr=0.2)
    assert [round(schedule(step, plan), 6) for step in range(7)] == [0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert schedule(0, SftPlan(steps=1, lr=1.0, warmup_steps=0)) == 1.0


def test_a_response_ends_with_the_end_token_and_the_prompt_opens_the_answer() -> None:
    tokenizer = build_tokenizer()
    example = encode(tokenizer, (Prompt("p", (Message("user", "1+1="),), None, "t"), "2."), 100)
    assert tokenizer.decode(example.prompt) == "<|user|>1+1=<|assistant|>"
    assert tokenizer.decode(example.response) == "2.<|end|>"
    assert example.response[-1] == tokenizer.eos_token_id


def test_a_tokenizer_without_a_chat_template_gets_plain_text() -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    example = encode(tokenizer, (Prompt("p", (Message("user", "1+1="),), None, "t"), "2."), 100)
    assert tokenizer.decode(example.prompt) == "1+1="


def learn(folder: Path, rows: Path, out: Path, **options: object) -> Path:
    settings = {"steps": 4, "batch": 8, "lr": 3e-3, "warmup_steps": 1, "seed": 5, **options}
    return sft.run(model=str(folder), data=str(rows), out=str(out), **settings)


def test_a_run_writes_a_model_that_loads_and_the_same_bytes_for_the_same_seed(
    folder: Path, rows: Path, tmp_path: Path
) -> None:
    first, second = learn(folder, rows, tmp_path / "a"), learn(folder, rows, tmp_path / "b")
    other = learn(folder, rows, tmp_path / "c", seed=6)
    weights = [(path / "model.safetensors").read_bytes() for path in (first, second, other)]
    assert weights[0] == weights[1] != weights[2]
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in "abc"]
    assert metrics[0] == metrics[1] != metrics[2]
    assert AutoTokenizer.from_pretrained(first).chat_template == build_tokenizer().chat_template
    assert AutoModelForCausalLM.from_pretrained(first).config.model_type == "qwen3"
    stored = yaml.safe_load((tmp_path / "a" / "run.yaml").read_text())
    assert sft.SftConfig(**stored).steps == 4
    assert stored["lr"] == 3e-3


def test_cutting_slices_smaller_changes_weights_by_rounding_only(folder: Path, rows: Path, tmp_path: Path) -> None:
    whole = learn(folder, rows, tmp_path / "a")
    small = learn(folder, rows, tmp_path / "b", slice_tokens=16)
    one, two = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (whole, small))
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=5e-4), name


def test_training_learns_the_rows(folder: Path, rows: Path, tmp_path: Path) -> None:
    learn(folder, rows, tmp_path / "a", steps=60, batch=12)
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[0]["sft/loss"] > 3.5
    assert lines[-1]["sft/loss"] < 0.5 * lines[0]["sft/loss"]
    assert lines[-1]["sft/accuracy"] > lines[0]["sft/accuracy"]
    assert all(math.isfinite(line["grad/norm"]) for line in lines)


@pytest.mark.parametrize(
    ("line", "where", "found"),
    [
        ("{", " line 2", "no JSON"),
        ("[1]", " line 2", "a list"),
        ('{"prompt": "a"}', " line 2", "no `response` (found: prompt)"),
        ('{"response": "a"}', " line 2", "found: response"),
        ('{"prompt": "a", "messages": [], "response": "b"}', " line 2", "one of `prompt` and `messages`"),
        ('{"prompt": 3, "response": "b"}', " line 2", "prompt is a number"),
        ('{"prompt": "a", "response": ""}', " line 2 response", "''"),
        ('{"prompt": "a", "response": null}', " line 2", "no `response` (found: prompt)"),
        ('{"messages": [], "response": "b"}', " line 2", "messages is an empty list"),
        (
            '{"messages": [{"role": "robot", "content": "a"}], "response": "b"}',
            " line 2",
            "messages[0] has role 'robot'",
        ),
        ('{"messages": [{"role": "user"}], "response": "b"}', " line 2", "messages[0] has keys role"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "response": "b"}', " line 2", "the last message"),
    ],
)
def test_a_bad_row_is_one_line_with_its_number(tmp_path: Path, line: str, where: str, found: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "1", "response": "1"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read_lessons(path)
    assert where in caught.value.where
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="there is no such file"):
        read_lessons(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no rows"):
        read_lessons(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_lessons(tmp_path / "latin.jsonl")


def test_rows_of_other_formats(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('prompt,response\n"1+1=",2\n')
    (tmp_path / "d.json").write_text('[{"prompt": "1+1=", "messages": null, "response": "2"}]')
    found = [read_lessons(tmp_path / name) for name in ("d.csv", "d.json")]
    assert [[(p.messages[0].content, response) for p, response in lessons] for lessons in found] == [
        [("1+1=", "2")]
    ] * 2


def test_only_a_newline_ends_a_row(tmp_path: Path) -> None:
    """Not the line separators of Unicode, which JSON may hold as they are; a byte order mark is no part of a row."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"prompt": "a\u2028b\x85c", "response": "1"}\r\n'.encode() * 2)
    assert [(prompt.messages[0].content, response) for prompt, response in read_lessons(path)] == [
        ("a\u2028b\x85c", "1")
    ] * 2


def test_mistakes_leave_earlier_results_alone(folder: Path, rows: Path, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "precious").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        learn(folder, rows, used)
    assert [path.name for path in used.iterdir()] == ["precious"]
    with pytest.raises(OutputError):
        learn(folder, rows, rows)
    with pytest.raises(ConfigError, match="Did you mean 'steps'"):
        learn(folder, rows, tmp_path / "o", stepz=3)
    with pytest.raises(ConfigError, match="steps"):
        learn(folder, rows, tmp_path / "o", steps=0)
    with pytest.raises(DataError, match="max_tokens"):
        learn(folder, rows, tmp_path / "long", max_tokens=20)


def test_a_model_that_is_not_there(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(CoveyError) as caught:
        learn(tmp_path / "nowhere", rows, tmp_path / "o")
    assert caught.value.exit_code == 66
    assert not (tmp_path / "o").exists()


def test_divergence_is_said(folder: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="Lower lr"):
        learn(folder, rows, tmp_path / "o", lr=1e30, steps=40)
    assert not (tmp_path / "o" / "model").exists()
