"""Adapted tiny models, and a learner on one: what tests of adapters share with the processes that they start."""

from __future__ import annotations

import torch
from tiny_models import make_model
from torch import nn
from toy_learner import OBJECTIVES

from covey.engines.adapters import Lora, add_adapter, add_reference, trained_tensors
from covey.engines.cluster import Cluster
from covey.engines.learner import OptimizerOptions, TorchLearner
from covey.engines.quantize import quantize_linear
from covey.engines.reference import AdapterScorer
from covey.engines.scorer import Scorer
from covey.engines.world import World

SMALL = Lora(rank=3, alpha=5.0)
ARCHITECTURES = ("qwen3", "llama", "gemma", "gpt2", "qwen3_moe")


def stir(model: nn.Module, seed: int = 3, size: float = 0.05) -> None:
    """Give every B some values, so that adapters matter."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in trained_tensors(model).items():
            if ".lora_B." in name:
                value.copy_(torch.randn(value.shape, generator=draw, dtype=torch.float64) * size)


def make_adapted(
    name: str = "qwen3",
    dtype: torch.dtype = torch.float64,
    *,
    lora: Lora = SMALL,
    quantize: str | None = None,
    stirred: bool = True,
) -> nn.Module:
    """A tiny model with adapters that do something."""
    model = make_model(name, dtype)
    if quantize:
        quantize_linear(model, quantize)
    add_adapter(model, lora, seed=7)
    if stirred:
        stir(model)
    return model


def make_learner(
    model: nn.Module, world: World | None = None, *, budget: int = 10**6, **options: float
) -> TorchLearner:
    """A learner of an adapted model."""
    options = {"max_grad_norm": 1e9, **options}
    return TorchLearner(
        Scorer(model), world=world or World(), tokens_per_slice=budget, optimizer=OptimizerOptions(**options)
    )


def make_cluster(
    world: World, *, name: str, budget: int, objective: str = "clipped", reference: bool = False
) -> Cluster:
    """A cluster whose reference is the model without its adapter, or with a second one."""
    model = make_adapted(name)
    if reference:
        add_reference(model)
    learner = make_learner(model, world, budget=budget)
    scorers = {"reference": AdapterScorer(learner, "reference" if reference else None)}
    return Cluster(world=world, learner=learner, sampler=Deaf(), objective=OBJECTIVES[objective], references=scorers)


class Deaf:
    """A sampler that keeps what it is given."""

    def publish(self, weights: dict[str, torch.Tensor], version: int) -> None:
        self.weights = {name: tensor.clone() for name, tensor in weights.items()}
