"""`covey eval`: how often a model is right on held-out problems, with intervals; two models on the same problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.cli.settings import ANSWERING, AsJson, print_json, print_rich
from covey.errors import ConfigError, CoveyError
from covey.target import Target, check_flags, find_target, newest_model, plain_setting, resolve_target, split_words

if TYPE_CHECKING:
    from covey.cli.asking import Manner
    from covey.config import RunConfig
    from covey.evaluate.evaluate import Evaluation

__all__ = ["evaluate", "newest_model", "settle"]

READS = (
    *ANSWERING,
    "engines.sampler_rows",
    "engines.server",
    "budget.eval_samples",
    "budget.eval_problems",
    "budget.sampling.max_tokens",
    "budget.sampling.stop",
)
"""Keys that an evaluation reads; any other one is refused."""
ALIKE = ("task", "reward", "budget.seed", "budget.sampling.max_tokens", "budget.sampling.stop")
"""Keys in which two runs have to agree to be asked the same problems in the same way."""
Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN_OR_MODEL [OTHER] [KEY=VALUE]",
        help="A run, a model as in model=, or a table; two are compared. Settings: see `covey config schema`.",
    ),
]
Samples = typer.Option(metavar="N", min=1, help="Samples per problem.")
First = typer.Option(metavar="N", min=0, help="Index of the first sample; each index has its own noise.")
K = typer.Option("--k", metavar="K,K", help="The k of pass@k, pass^k and maj@k; else 1, 2, 4, ...")
Step = typer.Option(metavar="N", min=0, help="The run's checkpoint of this step.")
TableFile = typer.Option("--table", metavar="OUT.jsonl", help="Write the counts of each problem, to merge or compare.")
Kept = typer.Option("--rollouts", metavar="OUT.jsonl", help="Write every sample with its text.")


def evaluate(
    words: Words,
    samples: Annotated[int | None, Samples] = None,
    first: Annotated[int, First] = 0,
    k: Annotated[str | None, K] = None,
    temperature: Annotated[float, typer.Option(metavar="T", min=0, help="0 takes the likeliest token.")] = 1.0,
    best: Annotated[bool, typer.Option("--best", help="The run's best model.")] = False,
    step: Annotated[int | None, Step] = None,
    table: Annotated[Path | None, TableFile] = None,
    rollouts: Annotated[Path | None, Kept] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Add up tables of disjoint samples.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask held-out problems: accuracy, pass@k, pass^k and maj@k per set.

    Of a run, its newest model is asked the problems of its own task; problems and noise depend on the seed alone, so two
    evaluations differ by the weights.
    """
    from covey.cli.asking import Manner, ask, check_asked, check_outputs

    names, flags = split_words(words)
    manner = Manner(temperature=temperature, first=first, ks=read_ks(k), table=table, rollouts=rollouts)
    if samples is not None:
        flags.append(f"budget.eval_samples={samples}")
    if merge and (flags or first or best or step is not None or rollouts):
        raise CoveyError("--merge", "given beside options that ask a model", "Tables are added up, nobody is asked.")
    if not merge and not 1 <= len(names) <= 2:
        raise CoveyError("covey eval", f"{len(names)} models", "Give one to evaluate, or two to compare.")
    if not merge and len(names) == 2 and (table or rollouts):
        raise CoveyError("covey eval", "an output file beside two models", "Evaluate each, then compare their tables.")
    check_outputs(manner)
    heads = {"model": names[0]} if len(names) == 1 else {"models": names}
    if merge:
        show({"model": "merged tables"}, [merged(names, manner)], manner, as_json)
    elif all(name.endswith(".jsonl") for name in names):
        refuse_asking(names, flags, asks=bool(first or best or step is not None or table or rollouts))
        show(heads, read_tables(names, manner), manner, as_json)
    elif any(name.endswith(".jsonl") for name in names):
        raise CoveyError("covey eval", "a table beside a model", "Evaluate the model with --table, then compare.")
    else:
        if temperature == 0 and not any(flag.startswith("budget.eval_samples=") for flag in flags):
            flags.append("budget.eval_samples=1")  # greedy answers to one problem are all the same
        targets = [find_target(name, best=best, step=step) for name in names]
        configs = settle_all(targets, flags)
        check_asked(configs[0], manner)
        show({**heads, "task": configs[0].task.kind}, [ask(config, manner) for config in configs], manner, as_json)


def read_ks(text: str | None) -> tuple[int, ...] | None:
    """`1,4,16` as numbers."""
    if text is None:
        return None
    try:
        ks = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        ks = (0,)
    if ks[0] < 1:
        raise ConfigError("--k", f"got {text!r:.40}", "Write numbers from 1 on, such as --k 1,4,16.")
    return ks


def refuse_asking(names: Sequence[str], flags: Sequence[str], *, asks: bool) -> None:
    """Refuse options that a table cannot heed."""
    if flags or asks:
        found = f"options that ask a model beside the table {names[0]}"
        raise CoveyError("covey eval", found, "Only --k and --json go with tables.")


def settle(target: str, flags: Sequence[str]) -> RunConfig:
    """The configuration of an evaluation: the run's own, or the defaults with that model."""
    check_flags(flags, target, READS, "an evaluation")
    return resolve_target(find_target(target), flags)


def settle_all(targets: Sequence[Target], flags: Sequence[str]) -> list[RunConfig]:
    """What each model is asked; two are asked the same problems: those of the first target that is a run."""
    for target in targets:
        check_flags(flags, target.named, READS, "an evaluation")
    configs = [resolve_target(target, flags) for target in targets]
    runs = [at for at, target in enumerate(targets) if target.run is not None]
    for at in runs[1:]:
        refuse_unlike(targets[runs[0]], configs[runs[0]], targets[at], configs[at])
    base = configs[runs[0] if runs else 0]
    return [base.model_copy(update={"model": config.model}) for config in configs]


def refuse_unlike(one: Target, first: RunConfig, other: Target, second: RunConfig) -> None:
    """Two runs are asked the same only where they agree what that is."""
    for key in ALIKE:
        mine, theirs = plain_setting(first, key), plain_setting(second, key)
        if mine != theirs:
            found = f"{one.named} has {mine!r:.80}, {other.named} has {theirs!r:.80}"
            raise ConfigError(key, found, f"Say which: {key}=VALUE.")


def merged(names: Sequence[str], manner: Manner) -> Evaluation:
    """Tables of files as one, written to --table if that is given."""
    from covey.evaluate.evaluate import Evaluation
    from covey.evaluate.table import merge_tables, write_table

    if not names:
        raise CoveyError("--merge", "no tables", "Name them: covey eval --merge A.jsonl B.jsonl.")
    tallies, origin = merge_tables([Path(name) for name in names])
    if manner.table is not None:
        write_table(manner.table, tallies, origin)
    return Evaluation(tallies, origin.main_set if origin else None, ks=manner.ks)


def read_tables(names: Sequence[str], manner: Manner) -> list[Evaluation]:
    """One table, or two that were asked alike."""
    from covey.evaluate.evaluate import Evaluation
    from covey.evaluate.table import read_origin, read_table, refuse_other_questions

    paths = [Path(name) for name in names]
    tables, origins = [read_table(path) for path in paths], [read_origin(path) for path in paths]
    known = [origin for origin in origins if origin is not None]
    if len(known) == 2:
        refuse_other_questions(names[1], known[1], names[0], known[0])
    mains = [origin.main_set if origin else None for origin in origins]
    return [Evaluation(table, main, ks=manner.ks) for table, main in zip(tables, mains, strict=True)]


def show(heads: Mapping[str, Any], found: Sequence[Evaluation], manner: Manner, as_json: bool) -> None:
    """Print one evaluation, or the change between two; `heads` says of what."""
    from covey.cli.scores import accuracy_table, change_table, k_table
    from covey.evaluate.compare import compare

    changes = compare(found[0], found[1], manner.ks or ()) if len(found) == 2 else []
    if as_json and changes:
        print_json({**heads, "changes": [change.record() for change in changes]})
    elif as_json:
        print_json({**heads, **found[0].record()})
    elif changes:
        print_rich(change_table(changes, heads["models"], found[0].main_set))
    else:
        print_rich(accuracy_table(found[0], heads["model"]), *k_table(found[0]))
