"""From a configuration to an evaluation: whom to ask, what to write down of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covey.errors import ConfigError, DataError, OutputError
from covey.target import portable

if TYPE_CHECKING:
    from covey.config import RunConfig
    from covey.engines.loading import LoadedModel
    from covey.evaluate.evaluate import Evaluation
    from covey.evaluate.table import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How problems are asked besides what the configuration says, and the files that are written of it."""

    temperature: float = 1.0
    first: int = 0
    ks: tuple[int, ...] | None = None
    table: Path | None = None
    rollouts: Path | None = None


def check_outputs(manner: Manner) -> None:
    """Refuse output files that are there or cannot be made, before anything is asked."""
    for path in (manner.table, manner.rollouts):
        if path is None:
            continue
        if path.exists():
            raise OutputError(str(path), "is there already", "Choose another name.")
        if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
            raise OutputError(str(path), "cannot be written", "Its folder must be there and writable.")


def check_asked(config: RunConfig, manner: Manner) -> None:
    """Refuse an evaluation that cannot be made, before a model is loaded."""
    samples, ks = config.budget.eval_samples, manner.ks or (1,)
    if ks[-1] > samples:
        right = f"Ask with --samples {ks[-1]} or more; twice as many make it much surer."
        raise ConfigError("--k", f"k = {ks[-1]} of {samples} samples per problem", right)
    config.check_data()
    task: Any = config.task
    if not any(task.held_out(config.budget.seed).values()):
        raise DataError("task", "it holds out no problems", "Set task.held_share=0.1 or task.held_data=FILE.")


def ask(config: RunConfig, manner: Manner) -> Evaluation:
    """Let the model answer and write down what is asked for; training temperature, top-p and top-k play no part."""
    from covey.assembly import isolated, with_reward
    from covey.evaluate.evaluate import Plan, evaluate
    from covey.evaluate.table import write_table
    from covey.types import Sampling

    budget, words = config.budget, config.budget.sampling
    samples, problems = budget.eval_samples, budget.eval_problems
    plan = Plan(seed=budget.seed, samples=samples, first=manner.first, problems=problems, ks=manner.ks)
    with isolated(with_reward(config.task, config.reward), config) as task, open_model(config) as (loaded, sampler):
        found = evaluate(
            sampler,
            task,
            plan,
            sampling=Sampling(
                manner.temperature, max_tokens=words.max_tokens, stop_ids=loaded.stop_ids, stop=words.stop
            ),
            render=loaded.render,
            decode=loaded.decode,
            think=loaded.think,
        )
    if manner.table is not None:
        write_table(manner.table, found.tallies, trace_origin(config, manner, found.main_set))
    if manner.rollouts is not None:
        write_rollouts(manner.rollouts, found)
    return found


@contextmanager
def open_model(config: RunConfig) -> Iterator[tuple[LoadedModel, Any]]:
    """The model and its sampler: in this process, or on the server that the configuration names."""
    import torch

    from covey.assembly import load_policy
    from covey.engines.http import HttpSampler, Server
    from covey.engines.probe import choose_threads
    from covey.engines.sampler import HFSampler

    asked = config.engines.server
    if asked is None:
        loaded = load_policy(config)
        torch.set_num_threads(choose_threads(loaded.model, config.engines.threads))
        yield loaded, HFSampler(loaded.model, tokenizer=loaded.tokenizer, max_rows=config.engines.sampler_rows)
        return
    server = Server(
        url=asked.url,
        model=asked.model,
        token=os.environ.get("OPENAI_API_KEY"),
        timeout_s=asked.timeout_s,
        concurrency=asked.concurrency,
    )
    loaded = without_weights(config)
    with HttpSampler(server) as sampler:
        sampler.check(lambda text: loaded.tokenizer(text, verbose=False)["input_ids"])
        yield loaded, sampler


def without_weights(config: RunConfig) -> LoadedModel:
    """How the model of a configuration speaks; another process holds its weights."""
    from torch import nn

    from covey.engines.chat import Chat
    from covey.engines.loading import LoadedModel
    from covey.preflight.words import open_words

    model = config.model
    chat = Chat(system=model.system, template_kwargs=model.chat_template_kwargs, thinking=model.thinking)
    words = open_words(model.path, chat)
    return LoadedModel(nn.Module(), words.tokenizer, words.stop_ids, model.path, chat=chat)


def trace_origin(config: RunConfig, manner: Manner, main_set: str | None) -> Origin:
    """What a table has to say of itself so that only what belongs together is added up or compared."""
    from covey.evaluate.table import Origin

    plain, words = config.plain(), config.budget.sampling
    asked = {
        "task": portable(plain["task"]),
        "reward": portable(plain["reward"]),
        "seed": config.budget.seed,
        "temperature": manner.temperature,
        "max_tokens": words.max_tokens,
        "stop": list(words.stop),
        "system": config.model.system,
        "chat_template_kwargs": dict(config.model.chat_template_kwargs),
    }
    server = config.engines.server
    weights = digest_weights(config.model.path) if server is None else f"{server.url} {server.model}"
    return Origin(model=config.model.path, weights=weights, asked=json.loads(json.dumps(asked)), main_set=main_set)


def digest_weights(source: str) -> str:
    """SHA-256 over a model's weight files, its base's included where it is an adapter."""
    from covey import files
    from covey.engines.folders import ADAPTER, find_folder
    from covey.engines.peft_folder import read_stored

    folder = find_folder(source, f"model {source}")
    parts = [files.sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    if (folder / ADAPTER).is_file():
        parts.append(digest_weights(read_stored(folder, f"model {source}").base))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def write_rollouts(path: Path, found: Evaluation) -> None:
    """Every sample as `rollouts/` of a run has it, a problem of several sets once."""
    from covey.files import encode, write_atomic
    from covey.observe.records import rollout_rows

    groups = {group.id: group for members in found.groups.values() for group in members}
    write_atomic(path, b"".join(encode(row) for row in rollout_rows(list(groups.values()), {})))
