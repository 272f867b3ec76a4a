"""What of covey works on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from covey.errors import CoveyError
from covey.preflight import probes
from covey.preflight.finding import Finding
from covey.preflight.machine import measure_memory

CORE = ("covey", "torch", "transformers", "tokenizers")
GIB = 2**30
LITTLE_MEMORY, LITTLE_DISK = GIB // 2, GIB
MOVES = 0.1
"""The reward of the self-test rises by more than this wherever learning works."""


def examine(model: str | None = None) -> list[Finding]:
    """Everything about this machine, and about one model's tokenizer and template if it is named."""
    findings = [*check_machine(), *check_packages(), *check_workers(), check_sandbox(), *check_learning(), check_hub()]
    return [*findings, *(check_model(model) if model is not None else [])]


def check_machine() -> Iterator[Finding]:
    """Python, torch, cores, memory, disk."""
    import torch

    device = (
        f"{torch.cuda.device_count()} accelerators (this version runs on the CPU)"
        if torch.cuda.is_available()
        else "cpu"
    )
    capability = torch.backends.cpu.get_cpu_capability()
    yield Finding(
        "machine", "ok", f"{probes.describe_python()}, torch {torch.__version__} on {device} ({capability}), "
        f"{probes.cores()} cores, {torch.get_num_threads()} threads",
    )  # fmt: skip
    memory, disk = measure_memory().available, probes.free_disk(Path.cwd())
    told = f"{memory / GIB:.1f} GiB memory free, " if memory is not None else ""
    little = disk < LITTLE_DISK or (memory is not None and memory < LITTLE_MEMORY)
    line = f"{told}{disk / GIB:.1f} GiB disk free"
    yield Finding("machine", "warn" if little else "ok", line, "Make room before a long run.")
    if not probes.writable(Path.cwd()):
        yield Finding("machine", "warn", f"{Path.cwd()} cannot be written", "Runs go to runs/ here, or to --out DIR.")


def check_packages() -> Iterator[Finding]:
    """Versions that are here, against those that covey asks for; extras with how to get them."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    for text in requires("covey") or ():
        found = re.match(r"([\w.-]+)(?:\[[\w,-]+\])?\s*([^;]*)(?:;.*extra\s*==\s*['\"](\w+)['\"])?", text)
        if found:
            wanted.setdefault(found[3] or "", []).append((found[1], found[2].strip()))
    ranges = dict(wanted.get("", ()))
    told = [f"{name} {_version(name)}{f' (asks {ranges[name]})' if ranges.get(name) else ''}" for name in CORE]
    bad = [f"{name} {_version(name)}, needs {asked}" for name, asked in ranges.items() if not _fits(name, asked)]
    yield Finding("versions", "ok", ", ".join(told))
    if bad:
        yield Finding("versions", "bad", "; ".join(bad), "python -m pip install --upgrade covey")
    here, absent, old = [], [], []
    for extra in metadata("covey").get_all("Provides-Extra") or ():
        if extra in ("dev", "docs"):
            continue
        parts = wanted.get(extra, [])
        if all(_version(name) == "" for name, _ in parts):
            absent.append(extra)
        elif all(_fits(name, asked) for name, asked in parts):
            here.append(f"{extra} ({', '.join(f'{name} {_version(name)}' for name, _ in parts)})")
        else:
            old += [f"{name} {_version(name) or 'missing'}, {extra} asks {asked}" for name, asked in parts]
    yield Finding("extras", "ok", f"here: {', '.join(here) or 'none'}")
    if absent:
        yield Finding(
            "extras", "ok", f"not installed, optional: {', '.join(absent)} (python -m pip install 'covey[{absent[0]}]')"
        )
    if old:
        yield Finding("extras", "warn", "; ".join(old), "python -m pip install --upgrade 'covey[EXTRA]'")


def check_workers() -> Iterator[Finding]:
    """Whether rewards can run in processes that are ended when they hang."""
    found = probes.probe_workers()
    if found.scores and found.killed:
        late = f"{found.kill_ms:.0f} ms after its limit"
        line = f"a scoring process starts in {found.start_ms:.0f} ms; one that hung was ended {late}"
        yield Finding("workers", "ok", line)
    else:
        what = "does not score" if not found.scores else "is not ended when it hangs"
        yield Finding(
            "workers", "bad", f"a scoring process {what}: {found.reason}", "Rewards cannot run here: is fork forbidden?"
        )


def check_sandbox() -> Finding:
    """What the kernel offers to lock code in. Nothing that ships runs a model's code, so nothing depends on it yet."""
    landlock, seccomp = probes.landlock_version(), probes.has_seccomp()
    told = f"landlock {landlock or 'no'}, seccomp {'yes' if seccomp else 'no'}"
    return Finding("sandbox", "ok", f"kernel support: {told}; not needed yet, no reward that ships runs a model's code")


def check_learning() -> Iterator[Finding]:
    """Whether samples depend on their batch, and whether the reward rises."""
    try:
        found = probes.probe_learning()
    except CoveyError as error:
        yield Finding("learning", "bad", str(error))
        return
    yield Finding("sampling", "ok", found.batch)
    line = f"self-test: reward {found.first:.2f} -> {found.last:.2f} in {found.steps} steps ({found.seconds:.1f} s)"
    moved = found.last - found.first > MOVES
    yield Finding(
        "learning", "ok" if moved else "bad", line, "The reward has to rise: this installation does not learn."
    )


def check_hub() -> Finding:
    """Whether models can be downloaded; no fault if not."""
    return Finding("network", "ok", f"model hub {probes.hub_answers()}")


def check_model(model: str) -> Iterator[Finding]:
    """A model's tokenizer and template, in full. Its weights are not loaded."""
    from covey.preflight.template import lint_template
    from covey.preflight.words import open_words

    try:
        words = open_words(model)
        report = lint_template(words.tokenizer, words.stop_ids)
    except CoveyError as error:
        yield Finding("model", "bad", str(error))
        return
    text: Any = words.config.get_text_config()
    context = f", context {words.context:,}" if words.context else ""
    kind = f"{model}: {words.config.model_type}, {text.num_hidden_layers} layers, width {text.hidden_size}"
    yield Finding("model", "ok", f"{kind}, vocabulary {text.vocab_size:,}{context}")
    stops = ", ".join(f"{name} ({stop})" for name, stop in zip(report.stops, report.stop_ids, strict=True))
    if not report.exists:
        yield Finding("template", "ok", f"none: texts stand as they are; stops at {stops}")
        return
    yield Finding(
        "template",
        "ok",
        f"stops at {stops}; {'one BOS' if report.bos else 'no BOS'}; opens with {report.generation_prompt!r}",
    )
    said = report.system or "rendered as it is"
    yield Finding("template", "ok", f"system message: {said}")
    for what, place in (("", report.diverges), (" with thoughts", report.diverges_thinking)):
        told = f"conversations{what}: {'append-only' if not place else f'not append-only, {place}'}"
        yield Finding("template", "warn" if place else "ok", told, "No matter for one reply per prompt.")
    if not report.closes:
        right = "Set eos_token_id in its generation_config.json, or budget.sampling.stop."
        yield Finding(
            "template", "warn", f"it closes a reply with {report.closed_by!r}, which no stop token is in", right
        )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _fits(name: str, asked: str) -> bool:
    """Whether the installed version is at least the one asked for; ranges here are all of the form `>=1.2`."""
    own, least = _version(name), re.search(r">=\s*([\d.]+)", asked)
    if not own or least is None:
        return bool(own)

    def numbers(text: str) -> list[int]:
        return [int(part) for part in re.findall(r"\d+", text.partition("+")[0])[:3]]

    return numbers(own) >= numbers(least[1])
