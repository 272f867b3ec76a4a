"""A tiny causal model, rows to train it on, and objectives: what the learner's tests share with the processes they start."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from covey.batch import Batch, Credited, Keep, Live
from covey.engines.learner import OptimizerOptions, TorchLearner
from covey.engines.world import World
from covey.metrics import Metrics, mean, total
from covey.types import Request, Sample, Sampling, Stop, Turn

VOCABULARY = 13


class ToyLayer(nn.Module):
    """A causal running mean of what came before, then a bend."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[None, :, None]
        return x + torch.tanh(self.mix(self.norm(x.cumsum(1) / count)))


class ToyModel(nn.Module):
    """Embedding, two layers, and the embedding again as the head (tied weights, as in small language models)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList([ToyLayer(width) for _ in range(2)])
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class ToyScorer(nn.Module):
    """The plainest scorer: every row with its own prompt, the whole table of logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.calls = 0

    def forward(self, rows: Batch, *, outputs: tuple[str, ...] = (), temperature: float = 1.0) -> dict[str, Tensor]:
        self.calls += 1
        n, width = rows.tokens.shape
        starts = [len(rows.prompts[int(group)]) for group in rows.group]
        tokens = torch.zeros(n, max(starts) + width, dtype=torch.int64)
        for i, start in enumerate(starts):
            tokens[i, :start] = torch.tensor(rows.prompts[int(rows.group[i])])
            tokens[i, start : start + width] = rows.tokens[i]
        at = torch.tensor(starts)[:, None] - 1 + torch.arange(width)[None]
        logits = self.model(tokens)
        logits = logits[0] if isinstance(logits, tuple) else getattr(logits, "logits", logits)
        table = torch.log_softmax(logits[torch.arange(n)[:, None], at] / temperature, -1)
        found = {
            "logp": table.gather(-1, rows.tokens[..., None]).squeeze(-1),
            "entropy": -(table.exp() * table).sum(-1),
        }
        return {name: torch.where(rows.mask, found[name], 0.0) for name in ("logp", *outputs)}


def make_scorer(model: str = "toy", dtype: torch.dtype = torch.float64) -> nn.Module:
    """The scorer of a toy model, or the real one of a tiny transformers model; its weights are always the same."""
    if model != "toy":
        from tiny_models import make_model

        from covey.engines.scorer import Scorer

        return Scorer(make_model(model, dtype))
    torch.manual_seed(5)
    toy = ToyModel().to(torch.float64)
    for parameter in toy.parameters():
        nn.init.normal_(parameter, std=0.4)
    return ToyScorer(toy.to(dtype))


def make_learner(
    world: World | None = None,
    *,
    model: str = "toy",
    dtype: torch.dtype = torch.float64,
    budget: int = 10**6,
    checkpointing: bool = False,
    **options: object,
) -> TorchLearner:
    """A learner whose weights are always the same."""
    return TorchLearner(
        make_scorer(model, dtype),
        world=world or World(),
        tokens_per_slice=budget,
        optimizer=OptimizerOptions(**{"weight_decay": 0.1, "max_grad_norm": 0.5, **options}),
        gradient_checkpointing=checkpointing,
    )


def make_step(seed: int = 0, *, groups: int = 6, dtype: torch.dtype = torch.float64, longest: int = 9) -> Credited:
    """Rows of several groups of different sizes, with prompts and responses of different lengths, and arbitrary credit."""
    g = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=g))

    sizes = [draw(1, 4) for _ in range(groups)]
    group = torch.tensor([100 + i for i, size in enumerate(sizes) for _ in range(size)])
    n, length = len(group), torch.tensor([draw(1, longest) for _ in range(sum(sizes))])
    width = longest + 2
    real = torch.arange(width) < length[:, None]
    mask = real & (torch.rand(n, width, generator=g) < 0.9)

    def noise() -> Tensor:
        return torch.where(mask, torch.randn(n, width, generator=g, dtype=torch.float64), 0.0).to(dtype)

    return Credited(
        prompts={100 + i: tuple(draw(0, VOCABULARY - 1) for _ in range(draw(1, 7))) for i in range(groups)},
        tokens=torch.where(real, torch.randint(0, VOCABULARY, (n, width), generator=g), 0),
        mask=mask,
        sampled_logp=-noise().abs(),
        old_logp=-noise().abs(),
        turn=torch.zeros(n, width, dtype=torch.int64),
        version=torch.zeros(n, width, dtype=torch.int64),
        length=length,
        group=group,
        rollout=torch.arange(n) + 1000,
        stop=torch.zeros(n, dtype=torch.int64),
        limit=torch.full((n,), width),
        reward=torch.rand(n, 2, generator=g, dtype=torch.float64),
        reward_names=("match", "format"),
        reward_weights=(1.0, 0.5),
        keep=Keep.all(n),
        columns={"difficulty": torch.rand(n, generator=g), "ref_logp": -noise().abs()},
        advantage=noise(),
        weight=noise().abs() / float(mask.sum()),
        penalty_weight={"kl": mask.to(dtype) / float(mask.sum())},
    )


def clipped(live: Live, rows: Credited, states: Mapping[str, object]) -> tuple[Tensor, Metrics]:
    """A sum of terms of single tokens: a clipped ratio and a distance from the reference."""
    gap = torch.where(rows.mask, live.logp - rows.old_logp, 0.0)
    ratio = torch.where(rows.mask, gap.exp(), 0.0)
    gain = torch.minimum(ratio * rows.advantage, ratio.clamp(0.8, 1.2) * rows.advantage)
    away = torch.where(rows.mask, rows.columns["ref_logp"] - live.logp, 0.0)
    loss = -(rows.weight * gain).sum() + 0.1 * (rows.penalty_weight["kl"] * (away.exp() - away - 1)).sum()
    return loss, {
        "loss/value": total(float(loss.detach())),
        "ratio/mean": mean(float(ratio.detach().sum()), float(rows.mask.sum())),
    }


def coupled(live: Live, rows: Credited, states: Mapping[str, object]) -> tuple[Tensor, Metrics]:
    """A product of two means over the whole step, of logp and of entropy, and a softmax over its rows."""
    count = rows.mask.sum().clamp(min=1)
    surprise, entropy = (rows.weight * live.logp).sum(), (live.outputs["entropy"] * rows.mask).sum() / count
    shares = torch.logsumexp((live.logp * rows.mask).sum(1) / 5, 0)
    loss = surprise * entropy + shares + entropy**2
    return loss, {"loss/value": total(float(loss.detach()))}


def within_groups(live: Live, rows: Credited, states: Mapping[str, object]) -> tuple[Tensor, Metrics]:
    """A softmax over the rows of each group."""
    loss, scores = live.logp.new_zeros(()), (live.logp * rows.mask).sum(1)
    for group in rows.group.unique():
        loss = loss + torch.logsumexp(scores[rows.group == group], 0)
    return loss, {"loss/value": total(float(loss.detach()))}


def faulty(live: Live, rows: Credited, states: Mapping[str, object]) -> tuple[Tensor, Metrics]:
    """Fails on the rank that the state names."""
    import torch.distributed as dist

    from covey.errors import ConfigError

    if dist.get_rank() == states["fault"]["rank"]:
        if states["fault"]["kind"] == "user":
            raise ConfigError("recipe.surrogate", "found this", "That would be right.")
        raise ValueError("a bug in an objective")
    return clipped(live, rows, states)


OBJECTIVES = {"clipped": clipped, "coupled": coupled, "within_groups": within_groups, "faulty": faulty}


class ToySampler:
    """Echoes what it is asked: tokens are a function of the request and its noise key, and of nothing else."""

    def __init__(self) -> None:
        self.version, self.weights, self.asked = -1, {}, []

    def sample(self, requests: list[Request], sampling: Sampling) -> list[list[Sample]]:
        self.asked += [request.id for request in requests]
        return [[self._continue(request, noise, sampling) for noise in request.noise_keys] for request in requests]

    def _continue(self, request: Request, noise: int, sampling: Sampling) -> Sample:
        tokens = tuple((sum(request.tokens) + noise + i) % VOCABULARY for i in range(1 + noise % sampling.max_tokens))
        logp = tuple(-0.1 * token - 1 / 3 for token in tokens)
        turn = Turn(
            tokens, logp, versions=((len(tokens), self.version),), policy_logp=logp, extra={"why": [request.id, 1]}
        )
        return Sample(turn, Stop.END if noise % 2 else Stop.LENGTH)

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        if request_failure(version):
            sys.exit(3)
        self.version, self.weights = version, {name: tensor.clone() for name, tensor in weights.items()}


def request_failure(version: int) -> bool:
    """Whether a publish is to end the process: version -7 on a rank other than 0."""
    import torch.distributed as dist

    return version == -7 and dist.get_rank() > 0


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The relative L2 distance of two sets of tensors with the same names."""
    assert a.keys() == b.keys()
    gap = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    return (gap / max(1e-300, sum(float(b[name].double().square().sum()) for name in b))) ** 0.5
