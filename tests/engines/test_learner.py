"""The learner: however rows are cut, the gradient is that of the whole step."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_learner import OBJECTIVES, ToySampler, clipped, distance, make_learner, make_step

from covey.batch import Credited, Live
from covey.engines.cluster import Cluster
from covey.engines.learner import TorchLearner
from covey.engines.schedule import learning_rate
from covey.engines.slices import count_tokens, cut, plan_shares, plan_slices
from covey.engines.transport import pack, unpack
from covey.engines.world import from_bytes, to_bytes
from covey.errors import ConfigError
from covey.metrics import Metric, values

torch.set_num_threads(1)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def gradient(learner: TorchLearner) -> dict[str, torch.Tensor]:
    """A copy of the gradient."""
    return {name: p.grad.clone() for name, p in learner.parameters.items()}


def undivided(step: Credited, objective: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The oracle: one forward on the whole step, one backward, no learner in between."""
    scorer = make_learner(dtype=dtype).scorer
    live = Live.of(scorer(step, outputs=("entropy",), temperature=0.7))
    loss, _ = OBJECTIVES[objective](live, step, {})
    loss.backward()
    return {name: p.grad for name, p in scorer.model.named_parameters()}


def updated(step: Credited, objective: str, couples: str, **options: object) -> tuple[TorchLearner, dict[str, float]]:
    """A learner after one update that keeps its gradient: the optimizer's step is taken away."""
    learner = make_learner(**options)
    learner.step = lambda lr: {}
    cluster = Cluster(world=learner.world, learner=learner, sampler=ToySampler(), objective=OBJECTIVES[objective])
    metrics = cluster.update(step, couples=couples, outputs=("entropy",), temperature=0.7, lr=0.1, states={})
    return learner, values(metrics)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("budget", [1, 12, 25, 60, 10**6])
@pytest.mark.parametrize(
    ("objective", "couples"),
    [("clipped", "row"), ("within_groups", "group"), ("coupled", "step"), ("within_groups", "step")],
)
def test_the_gradient_is_that_of_the_undivided_step(
    objective: str, couples: str, budget: int, dtype: torch.dtype
) -> None:
    step = make_step(3, dtype=dtype)
    learner, metrics = updated(step, objective, couples, budget=budget, dtype=dtype)
    whole = undivided(step, objective, dtype)
    assert distance(gradient(learner), whole) <= TOLERANCE[dtype]
    live = learner.forward(step, ("entropy",), 0.7)
    assert metrics["loss/value"] == pytest.approx(float(OBJECTIVES[objective](live, step, {})[0]), rel=1e-5)


def test_a_coupled_objective_that_does_not_say_so_is_wrong_on_slices() -> None:
    step = make_step(3)
    learner, _ = updated(step, "coupled", "row", budget=12)
    assert distance(gradient(learner), undivided(step, "coupled", torch.float64)) > 1e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.integers(1, 80), shuffle=st.integers(0, 10**6))
def test_order_of_rows_and_budget_do_not_matter(seed: int, budget: int, shuffle: int) -> None:
    step = make_step(seed)
    order = torch.randperm(step.size, generator=torch.Generator().manual_seed(shuffle))
    learner, metrics = updated(step.rows(order), "clipped", "row", budget=budget)
    other, expected = updated(step, "clipped", "row")
    assert distance(gradient(learner), gradient(other)) <= 1e-12
    assert metrics == pytest.approx(expected)


@pytest.mark.parametrize("budget", [1, 20, 10**6])
def test_forward_keeps_the_order_of_rows(budget: int) -> None:
    step = make_step(1)
    learner = make_learner(budget=budget)
    live = learner.forward(step, ("entropy",), 0.5)
    with torch.no_grad():
        oracle = learner.scorer(step, outputs=("entropy",), temperature=0.5)
    assert live.logp.shape == step.tokens.shape
    torch.testing.assert_close(live.logp, oracle["logp"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(live.outputs["entropy"], oracle["entropy"], rtol=1e-12, atol=1e-14)
    assert not live.logp.requires_grad


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), budget=st.integers(1, 100))
def test_slices_hold_whole_groups_within_the_budget(seed: int, budget: int) -> None:
    step = make_step(seed, groups=8)
    plan, whole = plan_slices(step, budget)
    assert sorted(row for rows in plan for row in rows) == list(range(step.size))
    costs = {int(g): count_tokens(step, (step.group == g).nonzero().flatten().tolist()) for g in step.group.unique()}
    assert whole == all(cost <= budget or int((step.group == g).sum()) == 1 for g, cost in costs.items())
    for rows in plan:
        assert count_tokens(step, rows) <= budget or len(rows) == 1
    for g, cost in costs.items():
        if cost <= budget:
            assert sum(any(int(step.group[row]) == g for row in rows) for rows in plan) == 1


def test_a_prompt_counts_once_per_group() -> None:
    step = make_step(0, groups=2)
    lengths = sum(step.length.tolist())
    assert count_tokens(step, range(step.size)) == lengths + sum(len(prompt) for prompt in step.prompts.values())


@pytest.mark.parametrize("ranks", [1, 2, 3, 9])
def test_shares_hold_whole_groups_and_balance(ranks: int) -> None:
    step = make_step(2, groups=7)
    shares = plan_shares(step, ranks)
    assert len(shares) == ranks
    assert sorted(row for rows in shares for row in rows) == list(range(step.size))
    for group in step.group.unique():
        assert sum(any(step.group[row] == group for row in rows) for rows in shares) == 1
    if ranks in (2, 3):
        loads = [count_tokens(step, rows) for rows in shares]
        assert max(loads) <= 1.5 * min(loads)


def test_a_batch_survives_transport() -> None:
    step = make_step(4)
    back = unpack(from_bytes(to_bytes(pack(step))))
    expected = cut(step, range(step.size), torch.device("cpu"))
    assert type(back) is Credited
    assert back.prompts == step.prompts
    assert (back.reward_names, back.reward_weights) == (step.reward_names, step.reward_weights)
    for name, value in vars(expected).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(back, name), value), name
    for name in ("columns", "penalty_weight"):
        for key, value in getattr(expected, name).items():
            assert torch.equal(getattr(back, name)[key], value), key
    assert torch.equal(back.keep.loss, step.keep.loss)


def test_transport_sends_only_real_tokens() -> None:
    step = make_step(4)
    _, tensors = pack(step)
    assert tensors["tokens"].numel() == int(step.length.sum()) < step.tokens.numel()


def test_clipping_bounds_the_whole_gradient() -> None:
    step, learner = make_step(0), make_learner(max_grad_norm=math.inf)
    learner.backward(step, lambda live, rows: clipped(live, rows, {}))
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradient(learner).values()))
    plain, small = make_learner(max_grad_norm=math.inf), make_learner(max_grad_norm=norm / 4)
    for one in (plain, small):
        one.backward(step, lambda live, rows: clipped(live, rows, {}))
        assert values(one.step(0.0))["grad/norm"] == pytest.approx(norm, rel=1e-12)
    moments = small.optimizer_state(), plain.optimizer_state()
    for key in moments[0]:
        if key.endswith("exp_avg"):
            torch.testing.assert_close(moments[0][key] * 4, moments[1][key], rtol=1e-12, atol=1e-16)


def test_adamw_is_the_papers() -> None:
    step = make_step(0)
    learner = make_learner(weight_decay=0.3, max_grad_norm=math.inf, betas=(0.8, 0.9), eps=1e-6)
    weights = {name: w.clone() for name, w in learner.weights().items()}
    m, v = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for t, lr in enumerate((0.02, 0.01), 1):
        learner.backward(step, lambda live, rows: clipped(live, rows, {}))
        for name, g in gradient(learner).items():
            m[name], v[name] = 0.8 * m[name] + 0.2 * g, 0.9 * v[name] + 0.1 * g * g
            decay = 0.3 if g.ndim >= 2 else 0.0
            move = (m[name] / (1 - 0.8**t)) / ((v[name] / (1 - 0.9**t)).sqrt() + 1e-6)
            weights[name] = weights[name] - lr * (decay * weights[name] + move)
        learner.step(lr)
    assert distance(learner.weights(), weights) < 1e-13


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    step, learner = make_step(0), make_learner()
    learner.backward(step, lambda live, rows: clipped(live, rows, {}))
    assert values(learner.step(0.01))["grad/skipped"] == 0
    weights = {name: w.clone() for name, w in learner.weights().items()}
    before = learner.optimizer_state()
    learner.backward(step, lambda live, rows: clipped(live, rows, {}))
    next(iter(learner.parameters.values())).grad.view(-1)[3] = bad
    assert values(learner.step(0.01))["grad/skipped"] == 1
    assert all(torch.equal(w, weights[name]) for name, w in learner.weights().items())
    after = learner.optimizer_state()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    learner.backward(step, lambda live, rows: clipped(live, rows, {}))
    assert values(learner.step(0.01))["grad/skipped"] == 0


def test_loading_weights_and_optimizer_continues_bitwise() -> None:
    first, second = make_learner(), make_learner()
    for at in range(4):
        step = make_step(at)
        first.backward(step, lambda live, rows: clipped(live, rows, {}))
        first.step(0.01)
        if at == 1:
            second.load_weights((name, w.clone()) for name, w in first.weights().items())
            second.load_optimizer(first.optimizer_state().items())
        if at > 1:
            second.backward(step, lambda live, rows: clipped(live, rows, {}))
            second.step(0.01)
    assert all(torch.equal(w, second.weights()[name]) for name, w in first.weights().items())
    state = second.optimizer_state()
    assert all(torch.equal(value, state[key]) for key, value in first.optimizer_state().items())


def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    step, plain = make_step(0), make_learner()
    saving = TorchLearner(make_learner().scorer, world=plain.world, tokens_per_slice=30, gradient_checkpointing=True)
    for learner in (plain, saving):
        learner.backward(step, lambda live, rows: clipped(live, rows, {}))
    assert distance(gradient(saving), gradient(plain)) <= 1e-12


def test_an_output_that_the_objective_ignores_costs_nothing() -> None:
    step, learner = make_step(0), make_learner(budget=10)
    learner.step = lambda lr: {}

    def only_entropy(live: Live, rows: Credited, states: object) -> tuple[torch.Tensor, dict[str, Metric]]:
        return (live.outputs["entropy"] * rows.mask).sum() ** 2, {}

    cluster = Cluster(world=learner.world, learner=learner, sampler=ToySampler(), objective=only_entropy)
    cluster.update(step, couples="step", outputs=("entropy",), temperature=1.0, lr=0.1, states={})
    scorer = make_learner().scorer
    only_entropy(Live.of(scorer(step, outputs=("entropy",), temperature=1.0)), step, {})[0].backward()
    assert distance(gradient(learner), {name: p.grad for name, p in scorer.model.named_parameters()}) <= 1e-12


def test_schedules() -> None:
    def rates(**options: object) -> list[float]:
        return [learning_rate(step, lr=1.0, warmup_steps=2, total_steps=6, **options) for step in range(7)]

    assert rates() == [0.5, 1, 1, 1, 1, 1, 1]
    assert rates(schedule="linear") == [0.5, 1, 1, 0.75, 0.5, 0.25, 0]
    assert rates(schedule="cosine") == pytest.approx([0.5, 1, 1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)
    with pytest.raises(ConfigError, match="Did you mean 'cosine'"):
        learning_rate(0, lr=1.0, schedule="cosin")
    with pytest.raises(ConfigError, match="none after 5 of warm-up"):
        learning_rate(5, lr=1.0, schedule="linear", warmup_steps=5, total_steps=5)


@pytest.mark.parametrize("model", ["qwen3", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize(("objective", "couples"), [("clipped", "row"), ("coupled", "step")])
def test_real_models_with_recomputed_layers(model: str, objective: str, couples: str) -> None:
    step = make_step(3)
    whole, _ = updated(step, objective, couples, model=model)
    saving, _ = updated(step, objective, couples, model=model, budget=20, checkpointing=True)
    assert distance(gradient(saving), gradient(whole)) <= 1e-12
