"""A run that cannot fit is refused before it starts, one that may not is told so, and one that did not is explained."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from covey.errors import CapacityError, CoveyError
from covey.preflight.machine import gib, measure_memory

if TYPE_CHECKING:
    from covey.config import RunConfig
    from covey.preflight.plan import MemoryPlan, Phase

SIGNS = re.compile(r"DefaultCPUAllocator|not enough memory|can't allocate memory|out of memory", re.I)
"""How torch says on a CPU or a GPU that it could not have memory."""
STEADY = ("load", "step")
"""Phases whose need does not depend on how long responses are."""
PLACES = {
    "load_model": "load", "evaluate": "evaluate", "sample": "sample", "backward": "update", "forward": "update",
    "step": "step", "save": "save", "write_model": "save",
}  # fmt: skip
"""Functions of a run -> the phase that they are."""
PATIENCE_S = 120
"""Longest time to find out what would have helped."""
_TOKEN_LAYER = 60 * 4
"""More bytes than any layer keeps per token and unit of its width."""


def check_memory(config: RunConfig) -> str | None:
    """A line of warning if a run may not fit into the memory that is free now; None if it will, or nobody knows.

    Raises CapacityError for one that cannot fit into this machine whatever happens: its weights, gradients and moments alone
    are more than there is.
    """
    memory = measure_memory()
    if memory.available is None or _surely_fits(config, memory.available):
        return None
    from covey.preflight.plan import plan_memory

    return judge(plan_memory(config))


def judge(plan: MemoryPlan) -> str | None:
    """What `check_memory` says of a plan."""
    memory = plan.memory
    steady = max((phase for phase in plan.phases if phase.name in STEADY), key=lambda phase: phase.bytes)
    if memory.total is not None and steady.bytes > memory.total:
        raise CapacityError(
            "memory",
            f"{_told(steady)} take {gib(steady.bytes)}, this {memory.limit} has {gib(memory.total)}",
            "`covey plan` with the same settings lists what to turn.",
        )
    if plan.fits is not False:
        return None
    return (
        f"memory: up to {gib(plan.peak)} in {plan.worst.name}, {gib(memory.available or 0)} are free; "
        "`covey plan` with the same settings lists what to turn"
    )


def _told(phase: Phase) -> str:
    names = [term.name for term in sorted(phase.terms, key=lambda term: -term.bytes) if term.name != "gaps"]
    return ", ".join(names[:3])


def _surely_fits(config: RunConfig, available: int) -> bool:
    """A generous bound from a model's configuration file and the size of its weights, to spare small runs the rehearsal."""
    from covey.engines.folders import find_folder

    folder = find_folder(config.model.path, f"model {config.model.path}")
    facts: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        facts = dict(json.loads((folder / "config.json").read_bytes()))
    wanted = ("num_hidden_layers", "hidden_size", "vocab_size")
    if any(not isinstance(facts.get(name), int) for name in wanted):
        return False
    layers, width, vocabulary = (facts[name] for name in wanted)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    budget, engines = config.budget, config.engines
    tokens = max(engines.tokens_per_slice, budget.sampling.max_tokens)
    wave = engines.sampler_rows * (8 * width * layers * budget.sampling.max_tokens + 40 * vocabulary)
    need: int = (1 << 30) + 20 * weights + _TOKEN_LAYER * tokens * layers * width + wave
    return need < available // 2


@contextmanager
def explained(config: RunConfig) -> Iterator[None]:
    """Turn a failed allocation into one line: the phase, the largest tensor, the two knobs that save most."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, CoveyError) or not (isinstance(error, MemoryError) or SIGNS.search(str(error))):
            raise
        raise explain(config, error) from error


def explain(config: RunConfig, error: BaseException) -> CapacityError:
    """The error that says what was too much and what to turn."""
    phase, memory = _phase_of(error.__traceback__), measure_memory()
    free = "" if memory.available is None else f", {gib(memory.available)} are free"
    found, right = f"no memory left in {phase}{_asked(error)}{free}", "`covey plan` lists what to turn."
    if plan := _plan_elsewhere(config):
        largest = plan["largest_tensor"]
        words = f"{largest['shape']} {largest['dtype']} of {largest['made_by']}" if largest else ""
        found += f"; the largest tensor is {gib(largest['bytes'])}, {words}" if largest else ""
        knobs = [f"{knob['setting']} (saves {gib(knob['saved'])})" for knob in plan["knobs"][:2]]
        right = f"Try {' or '.join(knobs)}." if knobs else right
    return CapacityError("memory", found, right)


def _plan_elsewhere(config: RunConfig) -> dict[str, Any] | None:
    """The plan as data, by a process of its own, because this one has no memory left; None where that fails too."""
    with (
        suppress(Exception),
        tempfile.TemporaryDirectory() as folder,
    ):  # what helps to explain must not hide what is explained
        file = Path(folder) / "plan.yaml"
        file.write_text(config.write_yaml(), encoding="utf-8")
        command = [sys.executable, "-m", "covey", "plan", "--config", str(file), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        return dict(json.loads(done.stdout))
    return None


def _asked(error: BaseException) -> str:
    match = re.search(r"tried to allocate (\d+) bytes", str(error))
    return f" ({gib(int(match[1]))} asked for)" if match else ""


def _phase_of(trace: TracebackType | None) -> str:
    """The phase in which a run failed: the innermost known function of the traceback."""
    phase = "load"
    while trace is not None:
        code = trace.tb_frame.f_code
        if "covey" in code.co_filename:
            phase = PLACES.get(code.co_name, phase)
        trace = trace.tb_next
    return phase
