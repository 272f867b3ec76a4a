"""Code of the user's own at events of a run: Hugging Face's names where they mean the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from covey.errors import ConfigError, CoveyError, did_you_mean
from covey.types import Group

if TYPE_CHECKING:
    from covey.run import Run


class CallbackError(CoveyError):
    """A callback raised an error; its cause has the traceback."""


class Callback:
    """Derive from it and write the methods that you need; the others do nothing. They run in the first process only.

    `run.step` counts finished steps, `run.stop(reason)` ends the run after the step at hand, and from `on_step_end` on
    `run.evaluate()` and `run.save()` do so out of their turn. What a callback remembers is not part of a checkpoint.
    """

    def on_train_begin(self, run: Run) -> None:
        """Before the first evaluation and step; of a resumed run too."""

    def on_step_begin(self, run: Run) -> None:
        """Before a step asks for rollouts."""

    def on_rollouts(self, run: Run, groups: Sequence[Group]) -> None:
        """The step's scored groups, before anything is learnt from them."""

    def on_log(self, run: Run, logs: Mapping[str, float]) -> None:
        """A step's metrics are written: names of the table of metrics, with clocks and memory."""

    def on_step_end(self, run: Run) -> None:
        """After a step, when the sampler has the new weights; evaluation and checkpoint come afterwards."""

    def on_evaluate(self, run: Run, metrics: Mapping[str, float]) -> None:
        """After an evaluation; `run.best` knows it already."""

    def on_save(self, run: Run, folder: Path) -> None:
        """After a checkpoint stands in `folder`."""

    def on_train_end(self, run: Run) -> None:
        """When everything is written: at the end, after `run.stop`, and after an interrupt; not after an error."""


EVENTS = tuple(name for name in vars(Callback) if name.startswith("on_"))
"""The methods of a callback, in the order of their first calls."""


class Callbacks(Callback):
    """All callbacks of a run, in order. One that raises is not called again, and `failure` says that the run has to end."""

    def __init__(self, parts: Iterable[Any] = ()) -> None:
        self.parts: list[Callback] = [_checked(part, place) for place, part in enumerate(parts)]
        self.failure: CallbackError | None = None

    def on_train_begin(self, run: Run) -> None:
        """Tell all."""
        self._tell("on_train_begin", run)

    def on_step_begin(self, run: Run) -> None:
        """Tell all."""
        self._tell("on_step_begin", run)

    def on_rollouts(self, run: Run, groups: Sequence[Group]) -> None:
        """Tell all."""
        self._tell("on_rollouts", run, groups)

    def on_log(self, run: Run, logs: Mapping[str, float]) -> None:
        """Tell all; each gets numbers of its own."""
        self._tell("on_log", run, logs)

    def on_step_end(self, run: Run) -> None:
        """Tell all."""
        self._tell("on_step_end", run)

    def on_evaluate(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Tell all; each gets numbers of its own."""
        self._tell("on_evaluate", run, metrics)

    def on_save(self, run: Run, folder: Path) -> None:
        """Tell all."""
        self._tell("on_save", run, folder)

    def on_train_end(self, run: Run) -> None:
        """Tell all."""
        self._tell("on_train_end", run)

    def raise_failure(self) -> None:
        """Raise what a callback raised, if one did."""
        if self.failure is not None:
            raise self.failure

    def _tell(self, event: str, run: Run, *what: Any) -> None:
        for part in list(self.parts):
            try:
                getattr(part, event)(run, *(dict(item) if isinstance(item, Mapping) else item for item in what))
            except CoveyError:  # of `run.save()` and the like: it says itself what is wrong
                raise
            except Exception as error:
                self.parts.remove(part)
                self.failure = self.failure or _failure(part, event, error)


def _failure(part: Callback, event: str, error: Exception) -> CallbackError:
    failure = CallbackError(
        f"callback {type(part).__name__}.{event}", f"raised {type(error).__name__}: {error}", "The run ends here."
    )
    failure.__cause__ = error
    return failure


def _checked(part: Any, place: int) -> Callback:
    """Refuse what would never be called: another library's callback, a class, a misspelt event."""
    where = f"callbacks[{place}]"
    if isinstance(part, type):
        raise ConfigError(where, f"{part.__name__} is a class", f"Give an instance: {part.__name__}().")
    foreign = any(base.__name__ == "TrainerCallback" for base in type(part).__mro__)
    if foreign:
        found = f"{type(part).__name__} is a callback of transformers, which asks for args, state and control"
        raise ConfigError(where, found, "Derive from covey.Callback: same events, `def on_step_end(self, run)`.")
    if not isinstance(part, Callback):
        raise ConfigError(where, f"a {type(part).__name__} is no callback", "Derive from covey.Callback.")
    for name in dir(part):
        if name.startswith("on_") and name not in EVENTS:
            raise ConfigError(f"{where}.{name}", "there is no such event", did_you_mean(name, EVENTS))
    return part
