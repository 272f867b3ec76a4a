"""`covey chat`: talk with a model, or look at how it answers a held-out problem."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from covey.cli.settings import ANSWERING, print_rich
from covey.errors import ConfigError, CoveyError
from covey.target import check_flags, find_target, resolve_target, split_words

if TYPE_CHECKING:
    from covey.chat import Conversation, Reply
    from covey.config import RunConfig
    from covey.protocols import Task
    from covey.types import Prompt, Rollout

SAMPLING = ("temperature", "top_p", "top_k", "max_tokens", "stop")
"""Settings that may be written without `budget.sampling.` here."""
READS = (*ANSWERING, "budget.sampling")
HELP = "/reset forgets the conversation, /problem [SET] asks a held-out problem, /quit ends (as does Ctrl-D)."
Words = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN_OR_MODEL [KEY=VALUE]",
        help="Folder of a run, or a model as in model=; settings such as temperature=0.7 max_tokens=64 seed=1.",
    ),
]
ProblemSet = typer.Option("--problem", metavar="[SET[:N]]", help="Show a held-out problem, the answer and its score.")


def chat(
    words: Words,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt; else the run's own.")] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="Say this, print the answer only, end.")] = None,
    problem: Annotated[str | None, ProblemSet] = None,
    best: Annotated[bool, typer.Option("--best", help="The run's best model.")] = False,
    step: Annotated[int | None, typer.Option(metavar="N", min=0, help="The run's checkpoint of this step.")] = None,
) -> None:
    """Talk with a model.

    Sampling is the run's own. From a pipe each line is a message and answers alone are printed. A model without a chat
    template completes each message by itself.
    """
    names, flags = split_words(words)
    if len(names) != 1:
        raise CoveyError("covey chat", f"{len(names)} models", "Give one.")
    if message is not None and problem is not None:
        raise CoveyError("--message", "given beside --problem", "Give one of them.")
    config, temperature = settle(names[0], flags, system, best=best, step=step)
    with opened(config, temperature) as (talk, task):
        if message is not None:
            print_answer(talk.say(message))
        elif problem is not None:
            show_problem(talk, task(), problem)
        elif sys.stdin.isatty():
            converse(talk, task)
        else:
            read_lines(talk, task)


def settle(
    named: str, flags: Sequence[str], system: str | None, *, best: bool = False, step: int | None = None
) -> tuple[RunConfig, float]:
    """The configuration, and the temperature: 0, which no training has, is understood here."""
    flags = [f"budget.sampling.{flag}" if flag.partition("=")[0] in SAMPLING else flag for flag in flags]
    greedy = [flag for flag in flags if flag.partition("=")[0] == "budget.sampling.temperature" and _is_zero(flag)]
    flags = [flag for flag in flags if flag not in greedy]
    check_flags(flags, named, READS, "a chat", short=SAMPLING)
    config = resolve_target(find_target(named, best=best, step=step), flags)
    if system is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"system": system})})
    return config, 0.0 if greedy else config.budget.sampling.temperature


def _is_zero(flag: str) -> bool:
    try:
        return float(flag.partition("=")[2]) == 0
    except ValueError:
        return False


@contextmanager
def opened(config: RunConfig, temperature: float) -> Iterator[tuple[Conversation, Callable[[], Task]]]:
    """A conversation with the model, and the task of its problems, made when it is asked for."""
    from contextlib import ExitStack
    from dataclasses import replace

    import torch

    from covey.assembly import isolated, load_policy, with_reward
    from covey.chat import Conversation
    from covey.engines.probe import choose_threads

    loaded = load_policy(config)
    torch.set_num_threads(choose_threads(loaded.model, config.engines.threads))
    sampling = replace(config.budget.sampling.with_stop_ids(loaded.stop_ids), temperature=temperature)
    made: list[Task] = []
    with ExitStack() as stack:

        def task() -> Task:
            if not made:
                config.check_data()
                made.append(stack.enter_context(isolated(with_reward(config.task, config.reward), config)))
            return made[0]

        yield Conversation(loaded, sampling, seed=config.budget.seed), task


def read_lines(talk: Conversation, task: Callable[[], Task]) -> None:
    """Answer each line of stdin, until it ends or says /quit."""
    for line in sys.stdin:
        if not heed(line, talk, task, lambda text: print_answer(talk.say(text))):
            return


def print_answer(reply: Reply) -> None:
    """The answer alone, on stdout at once."""
    from covey.chat import harmless

    typer.echo(harmless(reply.text))
    sys.stdout.flush()


def converse(talk: Conversation, task: Callable[[], Task]) -> None:
    """A dialogue in the terminal, until /quit or Ctrl-D; Ctrl-C stops an answer."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(HELP, style="dim"))
    if not talk.remembers:
        console.print(Text("The model has no chat template: it completes each message by itself.", style="dim"))

    def answer(text: str) -> None:
        reply = talk.say(text, lambda piece: console.print(Text(piece), end="", soft_wrap=True))
        console.print(Text(" (cut off: max_tokens)" if reply.stop == "length" else "", style="dim"))

    while True:
        try:
            line = console.input(Text("> ", style="bold"))
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        try:
            if not heed(line, talk, task, answer):
                return
        except KeyboardInterrupt:
            console.print(Text(" (stopped)", style="dim"))
        except CoveyError as error:
            console.print(Text(f"error: {error}"))


def heed(line: str, talk: Conversation, task: Callable[[], Task], answer: Callable[[str], None]) -> bool:
    """Do what a line asks for; False if it ends the conversation. An empty line asks for nothing."""
    text = line.strip("\r\n")
    command, _, rest = text.strip().partition(" ")
    if command == "/quit":
        return False
    if command == "/reset":
        talk.reset()
    elif command == "/problem":
        show_problem(talk, task(), rest.strip())
    elif command.startswith("/") and command[1:].isalpha():
        raise ConfigError(command, "there is no such command", HELP)
    elif text.strip():
        answer(text)
    return True


def show_problem(talk: Conversation, task: Task, wanted: str) -> None:
    """A held-out problem, what the model answers, and what that is worth."""
    from covey.chat import pick_problem

    prompt = pick_problem(task.held_out(talk.seed), task.main_set, wanted, talk.answered)
    _, rollout = talk.solve(task, prompt)
    print_rich(*_describe(prompt, rollout))


def _describe(prompt: Prompt, rollout: Rollout) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    from covey.chat import harmless

    rows = [(message.role, message.content) for message in prompt.messages]
    rows += [("model", rollout.text)]
    rows += [("answer", prompt.answer)] if prompt.answer is not None else []
    rows += [("score", "  ".join(f"{name} {value:g}" for name, value in rollout.rewards.items()))]
    rows += [("failed", f"{name}: {reason}") for name, reason in rollout.failures.items()]
    rows += [("because", rollout.detail)] if rollout.detail else []
    grid = Table.grid(padding=(0, 2))
    for name, text in (("problem", prompt.id), *rows):
        grid.add_row(Text(name, style="dim"), Text(harmless(text)))
    return [grid]
