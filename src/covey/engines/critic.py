"""The critic: a scalar head on hidden states, as a model of its own or on the policy's trunk, and the learners of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from covey.batch import Batch
from covey.engines.adapters import exact_dtype
from covey.engines.attention import decoder_of, layers_of, prepare
from covey.engines.cluster import Trained
from covey.engines.learner import TorchLearner
from covey.engines.scorer import Scorer, read_states, spread
from covey.metrics import Metrics, merge


class ValueHead(nn.Module):
    """V = w h + b in float32 at least, with w = 0 and b = 0 at the start: before it has learnt, a critic expects nothing."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device | None = None) -> None:
        super().__init__()
        exact = exact_dtype(dtype)
        self.weight = nn.Parameter(torch.zeros(size, dtype=exact, device=device))
        self.bias = nn.Parameter(torch.zeros(1, dtype=exact, device=device))

    @classmethod
    def of(cls, model: Any) -> ValueHead:
        """A fresh head that fits a causal LM."""
        embeddings = model.get_input_embeddings().weight
        return cls(model.config.get_text_config().hidden_size, embeddings.dtype, embeddings.device)

    def forward(self, states: Float[Tensor, "L H"]) -> Float[Tensor, " L"]:
        """The value of each state."""
        return (states.to(self.weight.dtype) * self.weight).sum(-1) + self.bias


class ValueScorer(nn.Module):
    """A causal LM without its vocabulary head as a function from rows to values: V of prompt + y_<t where y_t is predicted."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        prepare(model)
        self.decoder = decoder_of(model)
        self.head = ValueHead.of(model)
        super().train(False)

    def train(self, mode: bool = True) -> ValueScorer:
        """Stays in evaluation mode: no dropout."""
        return self

    def layers(self) -> list[nn.Module]:
        """The units of sharding and recomputation."""
        return [*layers_of(self.decoder), self.head]

    def forward(self, rows: Batch, *, outputs: Sequence[str] = (), temperature: float = 1.0) -> dict[str, Tensor]:
        """`value` [N T] with gradient, 0 where `rows.mask` is False; a critic is no policy: its `logp` is 0."""
        value = spread(self.head(read_states(self.decoder, rows)[0]), rows.mask)
        return {"logp": torch.zeros_like(value), "value": value}


class CriticLearner(TorchLearner):
    """Trains a critic at a multiple of the policy's learning rate."""

    def __init__(self, scorer: nn.Module, *, lr_factor: float, **options: Any) -> None:
        super().__init__(scorer, **options)
        self.lr_factor = lr_factor

    def step(self, lr: float) -> Metrics:
        """As every learner's, given the policy's learning rate; the norm of its gradient has a name of its own."""
        found = dict(super().step(lr * self.lr_factor))
        found["grad/norm_critic"] = found.pop("grad/norm")
        return found


class HeadLearner(CriticLearner):
    """Trains the value head on a policy's trunk, and nothing of the trunk."""

    def __init__(self, trunk: TorchLearner, head: nn.Module, lr_factor: float) -> None:
        self.scorer, self.world, self.tokens_per_slice = trunk.scorer, trunk.world, trunk.tokens_per_slice
        self.trunk, self.lr_factor = trunk, lr_factor
        self.adopt({f"head.{name}": parameter for name, parameter in head.named_parameters()}, trunk.options)

    def clear(self) -> None:
        """Forget the gradient, and what it left in the trunk."""
        super().clear()
        self.trunk.clear()


class TrunkLearner(TorchLearner):
    """A policy with a value head on its trunk: one loss moves both, each by an optimizer of its own."""

    def __init__(self, model: nn.Module, *, lr_factor: float, **options: Any) -> None:
        head = ValueHead.of(model)
        super().__init__(Scorer(model, head), **options)
        self.head = HeadLearner(self, head, lr_factor)

    def step(self, lr: float) -> Metrics:
        """The policy's step, then the head's."""
        return merge([super().step(lr), self.head.step(lr)])


def build_policy(critic: Any, model: nn.Module, **options: Any) -> TorchLearner:
    """The learner of a policy; `critic` is the recipe's, of which one that shares the trunk has its head there."""
    if getattr(critic, "joint", False):
        return TrunkLearner(model, lr_factor=critic.lr_factor, **options)
    return TorchLearner(Scorer(model), **options)


def build_critic(critic: Any, policy: TorchLearner, model: nn.Module | None) -> Trained | None:
    """What trains the recipe's critic: the head on the policy's trunk, or `model`, a copy of the policy, with a head."""
    if critic is None:
        return None
    if isinstance(policy, TrunkLearner):
        learner: TorchLearner = policy.head
    elif model is None:
        raise ValueError("a critic apart from the policy needs a model")
    else:
        learner = CriticLearner(
            ValueScorer(model),
            lr_factor=critic.lr_factor,
            world=policy.world,
            tokens_per_slice=policy.tokens_per_slice,
            optimizer=policy.options,
            gradient_checkpointing=policy.gradient_checkpointing,
        )
    return Trained(learner, lambda live, batch, states: critic.loss(live, batch))
