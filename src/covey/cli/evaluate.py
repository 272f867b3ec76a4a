"""`covey eval`: how often a model is right on held-out problems, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.cli.settings import AsJson, Settings, print_json, print_rich
from covey.errors import ConfigError, DataError, MissingInputError

if TYPE_CHECKING:
    from covey.config import RunConfig
    from covey.evaluate.evaluate import Evaluation

READS = (
    "model.dtype",
    "model.quantize",
    "model.system",
    "model.chat_template_kwargs",
    "model.thinking",
    "task",
    "reward",
    "scoring",
    "engines.threads",
    "engines.sampler_rows",
    "budget.seed",
    "budget.eval_samples",
    "budget.eval_problems",
    "budget.sampling.max_tokens",
    "budget.sampling.stop",
)
"""Keys that an evaluation reads; any other one is refused."""


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN_OR_MODEL", help="Folder of a run, or a model as in model=.")],
    settings: Settings = None,
    samples: Annotated[int | None, typer.Option(metavar="N", min=1, help="Samples per problem.")] = None,
    temperature: Annotated[float, typer.Option(metavar="T", min=0, help="0 takes the likeliest token.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Ask held-out problems: accuracy and unbiased pass@k per set.

    Of a run, its newest model is asked the problems of its own task; the model's problems and noise depend on the
    seed alone, so two evaluations differ by the weights.
    """
    flags = list(settings or ())
    if samples is None and temperature == 0 and not any(flag.startswith("budget.eval_samples=") for flag in flags):
        samples = 1  # greedy answers to one problem are all the same
    if samples is not None:
        flags.append(f"budget.eval_samples={samples}")
    config = settle(target, flags)
    config.check_data()
    task: Any = config.task
    if not any(task.held_out(config.budget.seed).values()):
        raise DataError("task", "it holds out no problems", "Set task.held_share=0.1 or task.held_data=FILE.")
    found = ask(config, temperature)
    if as_json:
        print_json({"model": config.model.path, "task": config.task.kind, **found.record()})
    else:
        print_rich(table(found, config.model.path))


def settle(target: str, flags: Sequence[str]) -> RunConfig:
    """The configuration of an evaluation: the run's own, or the defaults with that model."""
    from covey.config import resolve
    from covey.config.layers import parse_flag

    for flag in flags:
        item = parse_flag(flag)
        path = ".".join(item.path)
        if path == "model.path":
            raise ConfigError(item.key, f"the model is {target} already", "Leave it out.")
        if not any(path == key or path.startswith(f"{key}.") for key in READS):
            raise ConfigError(item.key, "an evaluation does not read it", f"It reads: {', '.join(READS)}.")
    folder = Path(target).expanduser()
    file = folder / "run.yaml"
    if not file.is_file():
        return resolve(flags, values={"model": target}).config
    return resolve([*flags, f"model.path={newest_model(folder)}"], file=file).config


def newest_model(folder: Path) -> Path:
    """The model of a run: of its end, or else of its newest checkpoint."""
    if (folder / "model").is_dir():
        return folder / "model"
    from covey.checkpoint import load

    found = load(folder).model
    if not found.is_dir():
        raise MissingInputError(str(folder), "has no model yet", "Wait for its first checkpoint.")
    return found


def ask(config: RunConfig, temperature: float) -> Evaluation:
    """Load the model and let it answer; training temperature, top-p and top-k play no part."""
    import torch

    from covey.assembly import isolated, load_policy, with_reward
    from covey.engines.probe import choose_threads
    from covey.engines.sampler import HFSampler
    from covey.evaluate.evaluate import Plan
    from covey.evaluate.evaluate import evaluate as measure
    from covey.types import Sampling

    loaded = load_policy(config)
    torch.set_num_threads(choose_threads(loaded.model, config.engines.threads))
    budget = config.budget
    with isolated(with_reward(config.task, config.reward), config) as task:
        return measure(
            HFSampler(loaded.model, tokenizer=loaded.tokenizer, max_rows=config.engines.sampler_rows),
            task,
            Plan(seed=budget.seed, samples=budget.eval_samples, problems=budget.eval_problems),
            sampling=Sampling(
                temperature, max_tokens=budget.sampling.max_tokens, stop_ids=loaded.stop_ids, stop=budget.sampling.stop
            ),
            render=loaded.render,
            decode=loaded.decode,
        )


def table(found: Evaluation, model: str) -> Any:
    """Sets as rows: problems, accuracy with its 95 % interval, pass@k with standard errors, truncated share."""
    from rich.table import Table
    from rich.text import Text

    sets = found.sets
    ks = sorted({k for result in sets.values() for k in result.pass_at if k > 1})
    shown = Table(title=Text(f"{model}: accuracy on held-out problems"), title_justify="left", box=None, padding=(0, 2))
    heads = ("set", "problems", "samples", "accuracy", "95% interval", *(f"pass@{k}" for k in ks), "truncated")
    for head in heads:
        shown.add_column(head, justify="left" if head == "set" else "right")
    for name, result in sets.items():
        low, high = result.accuracy.interval
        span = "" if math.isnan(low) else f"{low:.3f} to {high:.3f}"
        passes = [
            f"{result.pass_at[k].mean:.3f} ± {result.pass_at[k].se:.3f}" if k in result.pass_at else "" for k in ks
        ]
        mark = f"{name} *" if name == found.main_set else name
        cells = [mark, str(result.problems), str(result.samples), f"{result.accuracy.mean:.3f}", span, *passes]
        shown.add_row(*(Text(cell) for cell in (*cells, f"{result.truncated:.3f}")))
    return shown
