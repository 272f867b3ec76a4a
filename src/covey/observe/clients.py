"""The trackers' own clients, each behind the same four methods and imported only when it is named.

Every number goes out under covey's name and, where TRL has a name for it, under that one too, as TRL's users have it on their
dashboards: `train/reward` beside `reward/mean`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import netrc
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import urlparse

from covey.errors import ConfigError
from covey.observe.names import trl_names
from covey.observe.offline import read_history
from covey.observe.records import plain

CLOSE_S = 30.0
"""Longest time that the end of a run waits for its trackers."""
START_S = 30.0
"""About the longest time that the start of a run waits for one: a service that is not there is said soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a tracker is told of a run: `step` steps are done, `id` is the tracker's own name for it if it knows it already."""

    project: str
    name: str
    folder: Path
    config: Mapping[str, Any]
    step: int = 0
    id: str | None = None
    told: Mapping[str, int] = field(default_factory=dict)


class Client(Protocol):
    """One run in one tracker."""

    library: ClassVar[str]
    id: str

    def __init__(self, card: Card) -> None: ...

    @staticmethod
    def check() -> None:
        """Raise a ConfigError for what would make it ask or fail."""

    def told(self) -> dict[str, int]:
        """The last step by kind of record that the tracker's own store has; empty if it cannot be asked."""

    def log(self, kind: str, step: int, numbers: Mapping[str, float]) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def named(kind: str, numbers: Mapping[str, float], prefix: str = "train/") -> dict[str, float]:
    """The finite numbers of a record under covey's and TRL's names, which Hugging Face's trackers file under `train/`."""
    finite = {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}
    aliases = trl_names(finite) if kind == "step" else {}
    return finite | {f"{prefix}{name}": value for name, value in aliases.items()}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of a configuration."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return found


_ALWAYS = {"step": "train/global_step", "evaluation": "eval/problems"}
"""By kind of record, a number that every one has: by it a store is asked how far it got."""


def _place(kind: str, step: int) -> dict[str, float]:
    return {_ALWAYS["step"]: float(step)} if kind == "step" else {}


class TensorBoard:
    """Event files in RUN/tensorboard: `tensorboard --logdir runs`."""

    library: ClassVar[str] = "tensorboard"

    def __init__(self, card: Card) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id = "tensorboard"
        folder = card.folder / "tensorboard"
        after = max(card.told.values(), default=-1) + 1  # a kill may have left events that nobody counted
        self._writer = SummaryWriter(str(folder), purge_step=after or None)
        if not card.told:
            self._writer.add_text(
                "config", "\n".join(f"    {name}: {value}" for name, value in flat(card.config).items())
            )

    @staticmethod
    def check() -> None:
        """Nothing is needed."""

    def told(self) -> dict[str, int]:
        """Not asked: what lies beyond what was counted is purged."""
        return {}

    def log(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """Write a scalar per number and bring them to the file."""
        for name, value in named(kind, numbers).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, failed: bool) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, online or, with WANDB_MODE=offline, in RUN/wandb."""

    library: ClassVar[str] = "wandb"

    def __init__(self, card: Card) -> None:
        import wandb

        wanted = {"silent": True, "console": "off", "quiet": True, "disable_git": True, "x_disable_stats": True}
        wanted |= {"init_timeout": START_S, "finish_timeout": 0.8 * CLOSE_S}
        known = {name: value for name, value in wanted.items() if name in wandb.Settings.model_fields}
        with _hushed("wandb"):
            self._run = wandb.init(
                project=card.project,
                name=card.name,
                id=card.id or secrets.token_hex(4),
                resume="allow" if card.id else None,
                dir=str(card.folder),
                config=plain(card.config),
                settings=wandb.Settings(**known),
                reinit="create_new",
            )
        self.id, self._folder = str(self._run.id), card.folder

    @staticmethod
    def check() -> None:
        """Without a key the client would ask for one."""
        if _wandb_mode() in ("offline", "disabled", "dryrun") or os.environ.get("WANDB_API_KEY"):
            return
        host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            path = os.environ.get("NETRC")
            if netrc.netrc(path).authenticators(host):
                return
        raise ConfigError(
            "report.to", f"wandb has no key for {host}", "Run `wandb login` before, or set WANDB_MODE=offline."
        )

    def told(self) -> dict[str, int]:
        """The server knows the last step of a run that goes on; offline the files of the runs before say it."""
        last = self._run.starting_step - 1
        found = {"step": last, "evaluation": last}
        for step, names in read_history(self._folder, self.id) if self._run.offline else ():
            found |= {kind: max(found[kind], step) for kind, name in _ALWAYS.items() if name in names}
        return found

    def log(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """One row; what comes at the same step joins it."""
        self._run.log(named(kind, numbers) | _place(kind, step), step=step)

    def close(self, *, failed: bool) -> None:
        """End the run; offline it stays to be synced."""
        self._run.finish(exit_code=int(failed))


def _wandb_mode() -> str:
    """The mode that the environment or `wandb offline` says."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"]
    for settings in (Path("wandb/settings"), Path.home() / ".config/wandb/settings"):
        with contextlib.suppress(OSError):
            found = re.search(r"^\s*mode\s*=\s*(\w+)", settings.read_text(), re.M)
            if found:
                return found[1]
    return "online"


class Trackio:
    """A run of trackio, local unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names a place."""

    library: ClassVar[str] = "trackio"

    def __init__(self, card: Card) -> None:
        with _hushed("trackio"):
            import trackio

            local = not (os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL"))
            self._run = trackio.init(
                project=card.project,
                name=_free_name(card, local=local) if card.id is None else card.id.rpartition(" ")[0],
                config=flat(plain(card.config)),
                resume="never" if card.id is None else "allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
            trackio.context_vars.current_run.set(None)  # or it would be ended again at exit, and by the next run
        self._project, self._local = card.project, local
        self.id = f"{self._run.name} {self._run.id}"

    @staticmethod
    def check() -> None:
        """Nothing is needed."""

    def told(self) -> dict[str, int]:
        """A local store is asked for a metric that every record has: it may lack what waited when the process was killed."""
        if not self._local:
            return {}
        from trackio.sqlite_storage import SQLiteStorage

        found = {}
        for kind, name in _ALWAYS.items():
            points = SQLiteStorage.get_metric_values(self._project, self._run.name, name, run_id=self._run.id)
            found[kind] = max((int(point["step"]) for point in points), default=-1)
        return found

    def log(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """One row of the run's table."""
        self._run.log(named(kind, numbers) | _place(kind, step), step=step)

    def close(self, *, failed: bool) -> None:
        """Write what waits."""
        with _hushed("trackio"):
            self._run.finish()


def _free_name(card: Card, *, local: bool) -> str:
    """The run folder's name, which trackio has to find the run by again; if it may be taken, with an ending of its own."""
    import trackio

    taken = set() if local else {card.name}
    with contextlib.suppress(ValueError):  # there is no such project yet
        taken |= {run.name for run in trackio.Api().runs(card.project)}
    return f"{card.name}-{secrets.token_hex(2)}" if card.name in taken else card.name


class MLflow:
    """A run of MLflow, in the store that MLFLOW_TRACKING_URI names or in its default one."""

    library: ClassVar[str] = "mlflow"

    def __init__(self, card: Card) -> None:
        with _hushed("mlflow", "alembic"), _variable("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"):
            from mlflow.entities import Param
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient()
            if card.id is not None:
                self.id = card.id
                self._client.update_run(self.id, status="RUNNING")
                return
            found = self._client.get_experiment_by_name(card.project)
            place = found.experiment_id if found else self._client.create_experiment(card.project)
            self.id = str(self._client.create_run(place, run_name=card.name).info.run_id)
            params = [Param(_mlflow_name(key), str(value)[:5000]) for key, value in flat(card.config).items()]
            for start in range(0, len(params), 100):
                self._client.log_batch(self.id, params=params[start : start + 100])

    @staticmethod
    def check() -> None:
        """Nothing is needed."""

    def told(self) -> dict[str, int]:
        """The store knows the last step of a metric that every record has."""
        history = {kind: self._client.get_metric_history(self.id, name) for kind, name in _ALWAYS.items()}
        return {kind: max((point.step for point in points), default=-1) for kind, points in history.items()}

    def log(self, kind: str, step: int, numbers: Mapping[str, float]) -> None:
        """All numbers of a record at once."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        numbers = named(kind, numbers, prefix="") | _place(kind, step)
        points = [Metric(_mlflow_name(name), value, now, step) for name, value in numbers.items()]
        for part in _chunks(points, 500):
            self._client.log_batch(self.id, metrics=part)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")


def _mlflow_name(name: str) -> str:
    """MLflow knows letters, digits, `_-. /` only."""
    return re.sub(r"[^\w\-. /]", "_at_" if "@" in name else "_", name)


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment for a while, unless the user did."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)


@contextlib.contextmanager
def _hushed(*loggers: str) -> Iterator[None]:
    """Keep banners off the console; what goes wrong is raised."""
    before = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


CLIENTS: dict[str, type[Client]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio, "mlflow": MLflow}
"""Trackers by the name that `report.to` gives them."""
