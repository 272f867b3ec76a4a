"""The command line. One file per command; a command's body imports what it needs, so `covey --help` is instant.

A user's mistake is one line on stderr and the exit code of its class; `COVEY_DEBUG=1` adds the traceback. Anything
unexpected is a bug: exit code 1 with the traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from covey import __version__
from covey.cli import (
    chat,
    check,
    claims,
    config,
    doctor,
    evaluate,
    explain,
    export,
    new,
    plan,
    prove,
    recipes,
    sft,
    show,
    train,
)
from covey.errors import EXIT_CODES, CoveyError, StorageError

_LINES = [f"{code:>5}  {meaning:<38}" for code, meaning in EXIT_CODES.items()]
_HALF = (len(_LINES) + 1) // 2
CODES = "\n".join("".join(_LINES[place::_HALF]).rstrip() for place in range(_HALF))
EPILOG = f"""\b
Examples:
  covey new my-task                        a folder with data, reward and settings
  covey train steps=50 task=countdown      learn, in runs/<name>-<n>/
  covey eval runs/<name>-<n>               ask held-out problems
  covey config schema                      every key: type, unit, range, default

\b
Exit codes (COVEY_DEBUG=1 shows the traceback of a mistake):
{CODES}"""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.callback(epilog=EPILOG)
def covey(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Teach language models by reinforcement learning: every method a short recipe of the same few stages."""
    if version:
        typer.echo(f"covey {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


class _Bare(TyperCommand):
    """An option of this command may stand without a value, which then is empty."""

    option = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give the bare option the empty value."""
        following = [*args[1:], "-"]
        bare = [
            word == self.option and (after[:1] == "-" or "=" in after)
            for word, after in zip(args, following, strict=True)
        ]
        return super().parse_args(ctx, [f"{word}=" if flag else word for word, flag in zip(args, bare, strict=True)])


class _BareResume(_Bare):
    """`--resume` by itself means the newest run of the task that is named."""

    option = "--resume"


class _BareProblem(_Bare):
    """`--problem` by itself means the main set."""

    option = "--problem"


def _add(
    name: str,
    command: Callable[..., None],
    *,
    to: typer.Typer = app,
    example: str,
    cls: type[TyperCommand] = TyperCommand,
) -> None:
    to.command(name, cls=cls, epilog=f"\b\nExample:\n  {example}")(command)


_add("new", new.new, example="covey new my-task --data problems.jsonl")
_add("check", check.check, example="covey check my-task steps=200")
_add("plan", plan.plan, example="covey plan my-task model=Qwen/Qwen3-0.6B engines.tokens_per_slice=4096")
_add("doctor", doctor.doctor, example="covey doctor model=Qwen/Qwen3-0.6B")
_add(
    "train",
    train.train,
    example="covey train my-task recipe.surrogate.high=0.3 budget.optimizer.lr=1e-3 steps=200 seed=1",
    cls=_BareResume,
)
_add("eval", evaluate.evaluate, example="covey eval runs/first-1 --samples 32 budget.eval_problems=50")
_add("chat", chat.chat, example="covey chat runs/first-1 temperature=0.7", cls=_BareProblem)
_add("export", export.export, example="covey export runs/first-1 --out my-model --merge --dtype bfloat16")
_add("sft", sft.sft, example="covey sft data=lessons.jsonl model=tiny out=models/warm steps=500 lr=2e-3")
_add("show", show.show, example="covey show runs/first-1 --json")
_add("explain", explain.explain, example="covey explain no-signal")
_add("prove", prove.prove, example="covey prove NAME my-recipe.yaml my_package.module:recipe --seeds 50")
_add("claims", claims.claims, example="covey claims NAME --quick")
for _name, _group in (("recipes", recipes.group), ("config", config.group)):
    app.add_typer(_group, name=_name)

_ClickError: type[Any] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="covey", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except CoveyError as error:
        return _fail(error)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return _fail(StorageError(str(error.filename or "output"), f"cannot be written ({error.strerror})"))
    except Exception as error:
        if not isinstance(error, _ClickError):
            raise
        return _fail(_usage(error))


def _fail(error: CoveyError) -> int:
    if os.environ.get("COVEY_DEBUG") == "1":
        traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _usage(error: Any) -> CoveyError:
    """A mistake in the words of the command line, as one line like every other."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "covey"
    found, meant, near = error.format_message().strip().partition(" Did you mean ")
    found, hint = found.rstrip("."), f"{meant.strip()} {near} See `{command} --help`."
    if type(error).__name__ == "NoSuchOption" and command.endswith(("train", "eval", "sft", "show")):
        hint = f"Settings are written KEY=VALUE, such as steps=100. {hint}"
    return CoveyError(command, found, hint)
