"""One rank of a cluster test: `cluster_process.py SCENARIOS FOLDER`. Rank 0 writes what it found in scenario i to FOLDER/i.*"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from toy_learner import OBJECTIVES, ToySampler, make_learner, make_scorer, make_step

from covey import checkpoint
from covey.engines.cluster import Cluster
from covey.engines.learner import SlicedScorer
from covey.engines.world import World
from covey.errors import CoveyError
from covey.metrics import values
from covey.types import Request, Sampling

torch.set_num_threads(1)
STEPS = 5


def make_cluster(world: World, scenario: dict[str, object]) -> Cluster:
    """The same cluster on every rank."""
    dtype = getattr(torch, scenario.get("dtype", "float64"))
    model, options = scenario.get("model", "toy"), scenario.get("options", {})
    learner = make_learner(world, model=model, dtype=dtype, budget=scenario.get("budget", 30), **options)
    reference = SlicedScorer(make_scorer(model, dtype), world=world, tokens_per_slice=30)
    objective = OBJECTIVES[scenario.get("objective", "clipped")]
    return Cluster(
        world=world, learner=learner, sampler=ToySampler(), objective=objective, references={"reference": reference}
    )


def train(cluster: Cluster, scenario: dict[str, object], tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    """Some optimizer steps; gradients of the first, weights and optimizer of the last, forwards of both models."""
    dtype, record = getattr(torch, scenario.get("dtype", "float64")), []
    options = {"outputs": ("entropy",), "temperature": 0.7, "lr": 0.01, "states": scenario.get("states", {})}
    for at in range(STEPS):
        step = make_step(at, dtype=dtype, groups=scenario.get("groups", 6))
        record.append(values(cluster.update(step, couples=scenario.get("couples", "row"), **options)))
        if at == 1 and scenario.get("reload"):
            state = {name: tensor.clone() for name, tensor in cluster.optimizer_state().items()}
            cluster.load(weights={n: w.clone() for n, w in cluster.weights().items()}, optimizer=state)
    tensors |= {f"weight/{name}": tensor for name, tensor in cluster.weights().items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in cluster.optimizer_state().items()}
    if scenario.get("export"):
        folder = Path(str(scenario["folder"])) / "exported"
        checkpoint.export(folder, model=cluster.learner.scorer.model, tokenizer=None, weights=cluster.weights())
    for model in ("policy", "reference"):
        live = cluster.forward(step, ("entropy",), 0.7, model)
        tensors |= {f"{model}/{name}": tensor for name, tensor in live.tensors().items()}
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in cluster.learner.parameters.values())
    return {"metrics": record, "held": held}


def ask(cluster: Cluster, scenario: dict[str, object], tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    """Samples from all ranks, before and after a publish."""
    cluster.publish(3)
    for rank in range(1, cluster.world.size):
        for name in (signal.SIGINT, signal.SIGTERM):
            os.kill(int((Path(scenario["folder"]) / f"pid-{rank}").read_text()), name)
    requests = [Request(f"prompt-{i}", (i, 2 * i), tuple(range(i, i + 1 + i % 3))) for i in range(scenario["requests"])]
    found = cluster.sample(requests, Sampling(max_tokens=5, stop_ids=(1, 2), stop=("x",)))
    tensors |= {f"published/{name}": tensor for name, tensor in cluster.sampler.weights.items()}
    return {"samples": [[repr(sample) for sample in samples] for samples in found], "asked": cluster.sampler.asked}


def collect_gradient(
    cluster: Cluster, scenario: dict[str, object], tensors: dict[str, torch.Tensor]
) -> dict[str, object]:
    """The optimizer's first moment after one step is (1 - beta) times the (unclipped) gradient."""
    dtype = getattr(torch, scenario.get("dtype", "float64"))
    step = make_step(3, dtype=dtype, groups=scenario.get("groups", 6))
    options = {"outputs": ("entropy",), "temperature": 0.7, "lr": 0.0, "states": scenario.get("states", {})}
    cluster.update(step, couples=scenario.get("couples", "row"), **options)
    tensors |= {n: m for n, m in cluster.optimizer_state().items() if n.endswith("/exp_avg")}
    return {}


def die(cluster: Cluster, scenario: dict[str, object], tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    """Another rank ends without a word."""
    cluster.publish(-7)
    return {}


ACTS = {"train": train, "ask": ask, "gradient": collect_gradient, "die": die}


def run(world: World, scenario: dict[str, object], out: Path) -> int:
    """One rank's part in one scenario; returns the exit code."""
    cluster = make_cluster(world, scenario)
    if not world.leads:
        cluster.serve()
        return 0
    tensors: dict[str, torch.Tensor] = {}
    try:
        record = ACTS[scenario["act"]](cluster, scenario, tensors)
    except Exception as error:
        out.with_suffix(".error").write_text(json.dumps([type(error).__name__, str(error)]))
        return error.exit_code if isinstance(error, CoveyError) else 1
    finally:
        cluster.stop()
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()},
        out.with_suffix(".safetensors"),
    )
    out.with_suffix(".json").write_text(json.dumps(record))
    return 0


def main(scenarios: list[dict[str, object]], folder: Path) -> int:
    """Run one rank through all scenarios in one process group."""
    world = World.from_environment(timeout_s=60.0)
    (folder / f"pid-{world.rank}").write_text(str(os.getpid()))
    close, world.close = world.close, lambda: None
    for at, scenario in enumerate(scenarios):
        if at == len(scenarios) - 1:
            world.close = close
        if code := run(world, {**scenario, "folder": str(folder)}, folder / str(at)):
            return code
    (folder / f"done-{world.rank}").touch()
    return 0


def read(folder: Path, at: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """What rank 0 found in one scenario."""
    return load_file(folder / f"{at}.safetensors"), json.loads((folder / f"{at}.json").read_text())


if __name__ == "__main__":
    raise SystemExit(main(json.loads(sys.argv[1]), Path(sys.argv[2])))
