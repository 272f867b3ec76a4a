"""Values are read where the next token is predicted, from transformers' own hidden states; policy and critic move apart."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tiny_models import CONFIGS, make_model, make_rows
from torch import Tensor, nn

from covey.batch import Batch, Credited
from covey.columns.critic import EndValues, Values
from covey.engines.attention import borrowed_attention
from covey.engines.cluster import Cluster
from covey.engines.critic import HeadLearner, TrunkLearner, ValueScorer, build_critic, build_policy
from covey.engines.learner import OptimizerOptions, SlicedScorer, TorchLearner
from covey.engines.precision import precision
from covey.engines.scorer import Scorer
from covey.engines.world import World
from covey.metrics import values as shown
from covey.stages.values import SeparateCritic, SharedCritic
from covey.types import STOPS, Stop

RAGGED = {0: (5, [3, 17, 1]), 7: (21, [9, 4, 30, 2]), 3: (1, [6])}


def plain_values(model: nn.Module, head: nn.Module, rows: Batch) -> list[Tensor]:
    """The head on the hidden state before each token of a row, and on the one after the last."""
    found = []
    for row in range(rows.size):
        prompt, length = rows.prompts[int(rows.group[row])], int(rows.length[row])
        tokens = [*prompt, *rows.tokens[row, :length].tolist()]
        with borrowed_attention(model, "eager"), precision(model), torch.no_grad():
            hidden = model(input_ids=torch.tensor([tokens]), use_cache=False, output_hidden_states=True).hidden_states[
                -1
            ][0]
            found.append(hidden[len(prompt) - 1 :] @ head.weight + head.bias)
    return found


def with_head(scorer: nn.Module, head: nn.Module) -> nn.Module:
    """The head of a critic that has learnt something."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return scorer


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "gemma2"])
def test_a_value_is_read_where_its_token_is_predicted(name: str) -> None:
    assert name in CONFIGS
    torch.set_num_threads(1)
    model, rows = make_model(name, torch.float64), make_rows(RAGGED)
    scorer = ValueScorer(copy.deepcopy(model))
    assert (scorer(rows)["value"] == 0).all()  # before it has learnt
    with_head(scorer, scorer.head)
    value = scorer(rows)["value"]
    assert value[~rows.mask].abs().max() == 0
    for row, plain in enumerate(plain_values(Scorer(model).model, scorer.head, rows)):
        inside = rows.mask[row, : len(plain) - 1]
        torch.testing.assert_close(value[row, : len(plain) - 1][inside], plain[:-1][inside], rtol=0, atol=1e-12)


def test_a_head_on_the_trunk_leaves_the_policy_as_it_is() -> None:
    model, rows = make_model("qwen3", torch.float64), make_rows(RAGGED)
    plain = Scorer(copy.deepcopy(model))(rows, outputs=("entropy",))
    learner = TrunkLearner(model, lr_factor=1.0, world=World(), tokens_per_slice=60)
    with_head(learner.scorer, learner.scorer.value_head)
    found = learner.scorer(rows, outputs=("entropy", "value"))
    for name in ("logp", "entropy"):
        assert torch.equal(found[name], plain[name])
    alone = with_head(scorer := ValueScorer(copy.deepcopy(model)), scorer.head)
    torch.testing.assert_close(found["value"], alone(rows)["value"], rtol=0, atol=1e-12)
    assert set(learner.weights()) == set(dict(model.named_parameters()))


def test_what_comes_after_a_cut_response() -> None:
    model, rows = make_model("qwen3", torch.float64), make_rows(RAGGED)
    cut = torch.arange(rows.size) % 2 == 0
    rows = rows.with_(stop=torch.where(cut, STOPS.index(Stop.LENGTH), STOPS.index(Stop.END)))
    scorer = ValueScorer(model)
    with_head(scorer, scorer.head)
    engine = SlicedScorer(scorer, world=World(), tokens_per_slice=60)
    asked: list[int] = []

    def score(batch: Batch, outputs: tuple[str, ...], temperature: float, which: str) -> object:
        asked.append(batch.size)
        assert which == "critic"
        return engine.forward(batch, outputs, temperature)

    found = EndValues(score, 1.0).provide(rows)["value_end"]
    assert asked == [int(cut.sum())]
    causal = make_model("qwen3", torch.float64)
    for row, plain in enumerate(plain_values(Scorer(causal).model, scorer.head, rows)):
        assert float(found[row]) == pytest.approx(float(plain[-1]) if cut[row] else 0.0, abs=1e-12)
    ended = rows.with_(stop=torch.full_like(rows.stop, STOPS.index(Stop.END)))
    assert (EndValues(score, 1.0).provide(ended)["value_end"] == 0).all()
    assert len(asked) == 1


def credited(rows: Batch, kind: str) -> Credited:
    """Rows whose return is 1, of a critic that expected nothing."""
    zero = torch.zeros_like(rows.old_logp)
    weight = rows.mask.double() / rows.mask.sum()
    columns = {"value": zero, "returns": rows.mask.double()}
    return Credited(**{**vars(rows), "columns": columns}, advantage=zero, weight=weight, penalty_weight={kind: weight})


def make_cluster(critic: SeparateCritic | SharedCritic) -> Cluster:
    """A policy and its critic; the policy's objective is its log-likelihood, and the critic's loss if that is joint."""
    torch.set_num_threads(1)
    model = make_model("qwen3", torch.float64)
    copied = copy.deepcopy(model)
    options = OptimizerOptions(max_grad_norm=math.inf)
    learner = build_policy(critic, model, world=World(), tokens_per_slice=60, optimizer=options)

    def objective(live: object, rows: Credited, states: object) -> tuple[Tensor, dict[str, object]]:
        loss = -(rows.weight * live.logp).sum()
        return (loss + critic.loss(live, rows)[0] if critic.joint else loss), {}

    return Cluster(
        world=World(), learner=learner, sampler=None, objective=objective, critic=build_critic(critic, learner, copied)
    )


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return any(not torch.equal(before[name], after[name]) for name in before)


def state(cluster: Cluster) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return tuple({n: t.clone() for n, t in part.items()} for part in (cluster.weights(), cluster.critic_weights()))


@pytest.mark.parametrize(
    "critic", [SeparateCritic(clip=None, lr_factor=100.0), SharedCritic(clip=None, lr_factor=100.0)]
)
def test_a_critic_learns_alone_at_its_own_rate(critic: SeparateCritic | SharedCritic) -> None:
    """Given the policy's rate 1e-5, Adam's first step moves the head by 1e-3, and no weight of the policy."""
    cluster, rows = make_cluster(critic), make_rows(RAGGED)
    column = Values(cluster, joint=critic.joint)
    policy, own = state(cluster)
    step = credited(rows, critic.kind)
    told = shown(column.fit(step, 1e-5, alone=True))
    later, learnt = state(cluster)
    assert not moved(policy, later)
    assert float((learnt["head.bias"] - own["head.bias"]).abs()) == pytest.approx(1e-3, rel=1e-4)
    assert told["grad/norm_critic"] > 0
    assert told["critic/loss"] == pytest.approx(0.5)
    assert "grad/norm" not in told
    losses = [shown(column.fit(step, 1e-5, alone=True))["critic/loss"] for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert all(p.grad is None for p in cluster.learner.parameters.values())
    assert moved({"value": torch.zeros_like(rows.old_logp)}, dict(column.provide(rows)))


def test_a_joint_critic_learns_from_the_policys_loss() -> None:
    critic = SharedCritic(clip=None)
    cluster, rows = make_cluster(critic), make_rows(RAGGED)
    step, column = credited(rows, "shared"), Values(cluster, joint=True)
    assert isinstance(cluster.trained["critic"].learner, HeadLearner)
    assert column.fit(step, 1e-4, alone=False) == {}
    before = state(cluster)
    told = shown(cluster.update(step, couples="row", outputs=("value",), temperature=1.0, lr=1e-4, states={}))
    after = state(cluster)
    assert moved(before[0], after[0])
    assert moved(before[1], after[1])
    assert told["grad/norm"] > 0
    assert told["grad/norm_critic"] > 0


def test_a_policy_that_learns_leaves_a_separate_critic_alone() -> None:
    cluster, rows = make_cluster(SeparateCritic()), make_rows(RAGGED)
    before = state(cluster)
    cluster.update(credited(rows, "separate"), couples="row", outputs=(), temperature=1.0, lr=1e-4, states={})
    after = state(cluster)
    assert moved(before[0], after[0])
    assert not moved(before[1], after[1])
    assert type(cluster.learner) is TorchLearner
