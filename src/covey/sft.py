"""Supervised fine-tuning: teach a causal language model to answer prompts as given examples do.

The loss is the mean over the response tokens of a step (the end token included) of `-log p(token | what precedes it)`;
prompts are context only. Rows of a step are sorted by length and cut into right-padded slices; the mean is formed over the
whole step, so slices only add up and how they are cut cannot change the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, ValidationError

from covey.errors import ConfigError, DataError, DivergedError
from covey.files import Appender, reported, write_atomic, write_folder
from covey.folder import check_free
from covey.models import find_model
from covey.random import key, permutation
from covey.registry import Value, explain, plain
from covey.tasks.sources import read
from covey.tasks.table import check_prompt, plain_value
from covey.types import Prompt

if TYPE_CHECKING:
    from torch import Tensor

Lesson = tuple[Prompt, str]
"""What is asked and the response to imitate, without its end token."""
Report = Callable[[dict[str, float]], None]
SMALL_WIDTH = 512
"""Models up to this hidden size run on one thread: more threads cost more than they bring."""


class SftPlan(Value):
    """How to learn from examples: batch words, schedule and seed."""

    steps: int = Field(default=200, ge=1, description="optimizer steps")
    batch: int = Field(default=64, ge=1, description="examples per step")
    lr: float = Field(
        default=1e-5, gt=0, description="peak learning rate; 1e-5 suits billions of parameters, 2e-3 the embedded model"
    )
    warmup_steps: int = Field(default=50, ge=0, description="steps of linear warm-up")
    final_lr: float = Field(
        default=0.05, ge=0, le=1, description="learning rate at the last step as a share of the peak"
    )
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="decay rates of AdamW's two moments")
    weight_decay: float = Field(default=0.01, ge=0, description="decoupled weight decay of AdamW")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="the gradient is scaled down to this norm if it is longer"
    )
    slice_tokens: int = Field(
        default=4096, ge=1, description="padded tokens of one forward pass; does not change the gradient"
    )
    max_tokens: int = Field(default=4096, ge=2, description="longest example in tokens, prompt and response together")
    seed: int = Field(default=0, description="seed of the order of the examples (and of dropout, if the model has any)")


class SftConfig(SftPlan):
    """A run of `covey sft`: a model, rows to learn from and a folder for the result."""

    model: str = Field(description="folder of a transformers causal language model, or the name of an embedded one")
    data: str = Field(
        description="rows, as for covey train; each holds `prompt` (text or messages) or `messages`, and `response` (text)"
    )
    out: str = Field(description="new folder for run.yaml, metrics.jsonl and model/")


@dataclass(frozen=True, slots=True)
class Example:
    """One row as token ids: `prompt` is context, `response` (its end token included) is learnt."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens that go into the model: all but the last one."""
        return len(self.prompt) + len(self.response) - 1


def run(config: SftConfig | None = None, **options: Any) -> Path:
    """Fine-tune a model on rows; returns the folder of the new model (`OUT/model`).

    Give a config or its fields. Rows are visited in an order drawn anew for every pass over the file. Writes `run.yaml`,
    `metrics.jsonl` (one object per step, the same for the same seed) and `model/`, a plain transformers folder.
    Raises ConfigError, DataError, MissingInputError, OutputError or DivergedError.
    """
    config = configure(options) if config is None else config
    out = Path(config.out)
    check_free(out, "Choose a new folder; nothing in this one was touched.")
    lessons = read_lessons(Path(config.data))
    model, tokenizer = load(config.model)
    examples = [encode(tokenizer, lesson, config.max_tokens) for lesson in lessons]
    with reported(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "run.yaml", yaml.safe_dump(plain(config), sort_keys=False).encode())
    with Appender(out / "metrics.jsonl") as file:
        teach(model, in_laps(examples, config.seed), config, report=file.append)
    save(model, tokenizer, out / "model")
    return out / "model"


def in_laps(examples: Sequence[Example], seed: int) -> Callable[[int], Example]:
    """Examples for ever: every lap visits each one once, in an order of its own."""

    @lru_cache(maxsize=2)
    def order(lap: int) -> list[int]:
        return permutation(len(examples), seed, "sft-order", lap)

    def pick(index: int) -> Example:
        lap, place = divmod(index, len(examples))
        return examples[order(lap)[place]]

    return pick


def configure(options: dict[str, Any]) -> SftConfig:
    """A config from plain fields; a mistake is one line that names the field."""
    try:
        return SftConfig(**options)
    except ValidationError as error:
        raise explain(error, "sft", SftConfig) from None


def read_lessons(path: Path) -> list[Lesson]:
    """The rows of a file, folder or hub id; every mistake names the file and the line."""
    lessons = [read_row(row, where) for where, row in read(str(path))]
    if not lessons:
        raise DataError(str(path), "no rows", 'Each line is an object such as {"prompt": "1+1=", "response": "2"}.')
    return lessons


def read_row(row: Any, where: str) -> Lesson:
    """One row as what is asked and the response to imitate; a column that is null is absent."""
    if not isinstance(row, Mapping):
        raise DataError(where, f"a {type(row).__name__}", "A row is an object.")
    given = {str(name): plain_value(value, where, str(name)) for name, value in row.items() if value is not None}
    seen = ", ".join(sorted(given)) or "nothing"
    if "response" not in given:
        raise DataError(where, f"no `response` (found: {seen})", "Give the text to learn under `response`.")
    response = given["response"]
    if not isinstance(response, str) or not response:
        raise DataError(f"{where} response", f"{response!r:.60}", "Give a text that is not empty.")
    if ("prompt" in given) == ("messages" in given):
        raise DataError(where, f"one of `prompt` and `messages` is wanted (found: {seen})", "Give exactly one of them.")
    name = "prompt" if "prompt" in given else "messages"
    return Prompt(where, check_prompt(given[name], where, name), None, "sft"), response


def load(name: str) -> tuple[Any, Any]:
    """A causal language model in float32 and its tokenizer, from a folder or by the name of an embedded model."""
    from covey.engines.loading import load_model

    loaded = load_model(find_model(name))
    if loaded.tokenizer.eos_token_id is None:
        raise ConfigError(f"model {name}", "its tokenizer has no end token", "Set eos_token in tokenizer_config.json.")
    return loaded.model, loaded.tokenizer


def save(model: Any, tokenizer: Any, folder: Path, *, texts: Mapping[str, str] | None = None) -> None:
    """Write a plain transformers folder, with `texts` as further files by name: whole or not at all."""
    from transformers.utils import logging

    def fill(beside: Path) -> None:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        for name, text in (texts or {}).items():
            (beside / name).write_text(text, encoding="utf-8")
        for file in beside.iterdir():
            file.chmod(0o644)

    logging.disable_progress_bar()
    write_folder(folder, fill)


def encode(tokenizer: Any, lesson: Lesson, max_tokens: int) -> Example:
    """The token ids of a lesson: the prompt as a sampler would get it, then the response and the end token."""
    from covey.engines.loading import render

    prompt, response = lesson
    try:
        asked = render(tokenizer, prompt.messages)
    except DataError as error:
        raise DataError(prompt.id, f"{error.where}: {error.found}", error.right) from None
    learnt = (*tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id)
    if len(asked) + len(learnt) > max_tokens:
        found = f"{len(asked)} prompt and {len(learnt)} response tokens"
        raise DataError(prompt.id, found, f"At most max_tokens={max_tokens}: shorten it or raise max_tokens.")
    return Example(asked, learnt)


def teach(model: Any, examples: Callable[[int], Example], plan: SftPlan, *, report: Report) -> None:
    """Train a model in place on examples 0, 1, 2 ...; step k takes the `batch` examples that follow those of step k-1.

    `examples` is a pure function of the index. Each step reports its number from 1, the loss before the update in nats per
    response token, the share of response tokens that the model finds most likely, the learning rate and the gradient's norm.
    """
    import torch

    torch.manual_seed(key(plan.seed, "sft-dropout"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.lr, betas=plan.betas, weight_decay=plan.weight_decay)
    model.train()
    with few_threads(model):
        for step in range(plan.steps):
            first = step * plan.batch
            batch = [examples(first + i) for i in range(plan.batch)]
            lr = schedule(step, plan)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss, hits, tokens = accumulate(model, batch, plan.slice_tokens)
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), plan.max_grad_norm))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise DivergedError(f"step {step + 1}", f"loss {loss}, gradient norm {norm}", "Lower lr.")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            row = {"sft/loss": loss, "sft/accuracy": hits / tokens, "sft/tokens": float(tokens)}
            report({"step": step + 1, **row, "lr": lr, "grad/norm": norm})
    model.eval()


def schedule(step: int, plan: SftPlan) -> float:
    """The learning rate of step 0, 1, ...: up in a line over `warmup_steps`, then down in a line to the final share."""
    if step < plan.warmup_steps:
        return plan.lr * (step + 1) / plan.warmup_steps
    span = max(plan.steps - 1 - plan.warmup_steps, 1)
    done = (step - plan.warmup_steps) / span
    return plan.lr * (1 - (1 - plan.final_lr) * done)


def accumulate(model: Any, batch: Sequence[Example], slice_tokens: int) -> tuple[float, int, int]:
    """Add the gradient of the step's mean loss per response token; returns that loss, the hits and the token count."""
    tokens = sum(len(example.response) for example in batch)
    loss, hits = 0.0, 0
    for part in cut(batch, slice_tokens):
        part_loss, part_hits = sum_loss(model, part)
        (part_loss / tokens).backward()  # type: ignore[no-untyped-call]
        loss, hits = loss + float(part_loss.detach()) / tokens, hits + part_hits
    return loss, hits, tokens


def cut(batch: Sequence[Example], slice_tokens: int) -> Iterator[list[Example]]:
    """Slices of similar length, longest first: each within `slice_tokens` and with rows of more than half its width."""
    part: list[Example] = []
    for example in sorted(batch, key=lambda example: example.length, reverse=True):
        width = part[0].length if part else 0
        if part and ((len(part) + 1) * width > slice_tokens or 2 * example.length <= width):
            yield part
            part = []
        part.append(example)
    if part:
        yield part


def sum_loss(model: Any, part: Sequence[Example]) -> tuple[Tensor, int]:
    """Minus the summed log-probability of the response tokens of some rows, and how many of them are the likeliest.

    Rows are padded on the right: under causal attention no token sees what follows it, so padding needs no mask.
    """
    import torch
    from torch.nn import functional

    device = next(model.parameters()).device
    width = max(example.length for example in part)
    ids = torch.zeros(len(part), width, dtype=torch.long)
    labels = torch.full((len(part), width), -100)
    for row, example in enumerate(part):
        whole = torch.tensor(example.prompt + example.response)
        ids[row, : example.length] = whole[:-1]
        labels[row, len(example.prompt) - 1 : example.length] = whole[len(example.prompt) :]
    labels = labels.to(device)
    logits = model(input_ids=ids.to(device), use_cache=False).logits
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    learnt = labels >= 0
    hits = int((logits.detach().argmax(-1) == labels)[learnt].sum())
    return functional.cross_entropy(logits[learnt], labels[learnt], reduction="sum"), hits


@contextmanager
def few_threads(model: Any) -> Iterator[None]:
    """One thread while a small model trains: faster on a CPU, and sums come out the same on machines of any size."""
    import torch

    before = torch.get_num_threads()
    if getattr(model.config, "hidden_size", SMALL_WIDTH + 1) <= SMALL_WIDTH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
