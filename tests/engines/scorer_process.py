"""One rank of a sharded scorer: its share of the rows, and how far the summed gradient is from a single process's."""

from __future__ import annotations

import copy
import os
import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from tiny_models import make_model, make_rows

from covey.engines import head
from covey.engines.scorer import Scorer


def distance(name: str, *, recompute: bool) -> float:
    """Relative L2 distance of gradients over two ranks, of which the second has uneven rows, from those of one process."""
    model = make_model(name, torch.float64)
    whole, sharded = Scorer(copy.deepcopy(model)), Scorer(model)
    rows = make_rows({0: (5, [3, 17, 1]), 7: (21, [9, 4, 30]), 3: (4, [6])})
    own = torch.tensor([0, 3, 5, 6] if dist.get_rank() == 0 else [1, 2, 4])
    for scorer in (whole, sharded):
        if scorer is sharded:
            shard(scorer, recompute=recompute)
        out = scorer(rows.rows(own) if scorer is sharded else rows, outputs=("entropy",), temperature=0.7)
        (out["logp"].sum() + 0.1 * out["entropy"].sum()).backward()
    found = [p.grad.full_tensor() for p in sharded.parameters() if p.grad is not None]
    wanted = [p.grad for p in whole.parameters() if p.grad is not None]
    error = sum(((a - b) ** 2).sum() for a, b in zip(found, wanted, strict=True))
    return float((error / sum((b**2).sum() for b in wanted)).sqrt())


def shard(scorer: Scorer, *, recompute: bool) -> None:
    """FSDP2 layer by layer with the scorer as its root; gradients are summed."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in scorer.layers():
        if recompute:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        fully_shard(layer, mesh=mesh)
    fully_shard(scorer, mesh=mesh)
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    head.LOGITS_PER_CHUNK = 7 * 61  # several chunks, recomputed in the backward pass
    for name in ("qwen3", "gpt2", "qwen3_moe"):
        for recompute in (False, True):
            error = distance(name, recompute=recompute)
            if dist.get_rank() == 0:
                print(f"distance {error:.3e}", flush=True)
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an orderly exit
