"""One rank of a test of adapters: `adapted_process.py FOLDER`. Rank 0 writes what it found in case i to FOLDER/i.safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from adapted import make_cluster
from safetensors.torch import save_file
from torch import Tensor
from toy_learner import make_step

from covey.engines.cluster import Cluster
from covey.engines.reference import Follower, parameters_of
from covey.engines.world import World

torch.set_num_threads(1)
CASES = [
    {"name": "qwen3", "budget": 40},
    {"name": "qwen3", "budget": 60, "objective": "coupled", "couples": "step", "reference": True, "groups": 3},
    {"name": "gpt2", "budget": 30, "groups": 1, "reference": True},
    {"name": "qwen3_moe", "budget": 40, "reference": True},
]


def train(world: World, case: dict[str, object]) -> tuple[Cluster, dict[str, Tensor]]:
    """Three steps; gradients of the first, adapters, optimizer, reference, and both forwards after the last."""
    case = dict(case)
    couples, groups = case.pop("couples", "row"), case.pop("groups", 5)
    cluster = make_cluster(world, **case)
    learner = cluster.learner
    if case.get("reference"):
        own = parameters_of(learner.scorer.model, learner.parameters, adapted=True)
        cluster.follower = Follower(learner.parameters, own, every=2, mix=0.3)
    if not world.leads:
        cluster.serve()
        return cluster, {}
    found: dict[str, Tensor] = {}
    options = {"couples": couples, "outputs": ("entropy",), "temperature": 0.7, "states": {}}
    for at in range(3):
        step = make_step(at, groups=groups)
        cluster.update(step, lr=0.0 if at == 0 else 1e-2, **options)
        if at == 0:
            found |= {f"gradient/{n}": m for n, m in cluster.optimizer_state().items() if n.endswith("/exp_avg")}
        cluster.publish(at + 1)
    if case.get("reference"):  # as a resumed run has it
        state = {name: tensor.clone() for name, tensor in cluster.reference_state().items()}
        cluster.load_reference({name: torch.zeros_like(tensor) for name, tensor in state.items()}, 0)
        cluster.load_reference(state, 3)
        found |= {f"reference/{name}": tensor for name, tensor in cluster.reference_state().items()}
    found |= {f"weight/{name}": tensor for name, tensor in cluster.weights().items()}
    found |= {f"published/{name}": tensor for name, tensor in cluster.sampler.weights.items()}
    found |= {f"optimizer/{name}": tensor for name, tensor in cluster.optimizer_state().items()}
    for model in ("policy", "reference"):
        found[f"logp/{model}"] = cluster.forward(step, (), 0.7, model).logp
    return cluster, {name: tensor.detach().clone().contiguous() for name, tensor in found.items()}


def main(folder: Path) -> int:
    """Run one rank through all cases in one process group."""
    world = World.from_environment(timeout_s=60.0)
    close, world.close = world.close, lambda: None
    for at, case in enumerate(CASES):
        cluster, found = train(world, case)
        if world.leads:
            cluster.stop()
            save_file(found, folder / f"{at}.safetensors")
    close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
