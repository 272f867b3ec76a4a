"""Ratios, surrogates and penalties: oracles, goldens, finite differences, numbers at the edge."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from covey.batch import Credited, Live
from covey.errors import ConfigError
from covey.registry import Component
from covey.stages.masked import LOG_RATIO_LIMIT
from covey.stages.penalties import Entropy, Kl
from covey.stages.ratios import SequenceRatio, TokenRatio
from covey.stages.surrogates import Clip, PolicyGradient
from covey.stages.weighting import RolloutMean, TokenMean
from tests.stages import oracle
from tests.stages.data import as_credited, draw_batch

SEEDS = st.integers(0, 10_000)
ESTIMATORS = ("k1", "k2", "k3", "k3_straight_through", "k3_importance")


def one_row(old: list[float], advantage: list[float] | float, mask: list[bool] | None = None) -> Credited:
    """A single response."""
    base = draw_batch(0, groups=1, most=1, width=len(old)).rows(torch.zeros(1, dtype=torch.long))
    values = advantage if isinstance(advantage, list) else [advantage] * len(old)
    row = base.with_(
        mask=torch.tensor([mask or [True] * len(old)]),
        old_logp=torch.tensor([old], dtype=torch.float64),
        sampled_logp=torch.tensor([old], dtype=torch.float64),
    )
    credited = as_credited(row)
    return credited.with_(advantage=torch.tensor([values], dtype=torch.float64), weight=credited.mask.double())


def live(values: list[float] | Tensor) -> Live:
    """Log-probabilities with gradient."""
    tensor = values if isinstance(values, Tensor) else torch.tensor([values], dtype=torch.float64)
    return Live(tensor.detach().clone().requires_grad_())


def gain(ratio: Component | None, surrogate: Component, now: Live, batch: Credited) -> Tensor:
    """What ratio and surrogate make of a batch."""
    return surrogate(None if ratio is None else ratio(now, batch), now, batch)


def differences(function: Callable[[Tensor], Tensor], x: Tensor, step: float = 1e-6) -> Tensor:
    """Central finite differences of a scalar function."""
    out = torch.zeros_like(x)
    for i in range(x.numel()):
        moved = [x.clone(), x.clone()]
        moved[0].view(-1)[i] += step
        moved[1].view(-1)[i] -= step
        out.view(-1)[i] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return out


# Ratios


@given(seed=SEEDS, anchor=st.sampled_from(["old", "sampled"]))
def test_ratios_are_the_formula(seed: int, anchor: str) -> None:
    batch = as_credited(draw_batch(seed))
    now = draw_batch(seed + 1).old_logp[:1].sum() + batch.old_logp + torch.randn(batch.mask.shape).double()
    old = (batch.old_logp if anchor == "old" else batch.sampled_logp).tolist()
    for part, formula in ((TokenRatio, oracle.token_ratio), (SequenceRatio, oracle.sequence_ratio)):
        found = part(anchor=anchor)(live(now), batch).tolist()
        expected = formula(now.tolist(), old, batch.mask.tolist())
        assert found == [pytest.approx(row, rel=1e-12, abs=1e-12) for row in expected]


def test_golden_of_the_sequence_ratio() -> None:
    """Log-ratios (.1, -.2, .3): s = 1.068939, and with A = 1 the gradient is s / L = 0.356313 on each token."""
    batch, now = one_row([-1.0, -1.0, -1.0], 1.0), live([-0.9, -1.2, -0.7])
    ratio = SequenceRatio()(now, batch)
    assert round(float(ratio.detach()[0, 0].exp()), 6) == 1.068939
    value = (RolloutMean()(batch) * Clip()(ratio, now, batch)).sum()
    value.backward()
    assert [round(g, 6) for g in now.logp.grad[0].tolist()] == [0.356313] * 3


def test_the_environments_tokens_have_no_say_in_a_sequence_ratio() -> None:
    batch = one_row([-1.0, -1.0, -1.0], 1.0, mask=[True, False, True])
    ratio = SequenceRatio()(live([-0.9, 5.0, -0.7]), batch)
    assert ratio[0].tolist() == pytest.approx([0.2, 0.0, 0.2])


def test_a_clamp_acts_at_twenty_and_stops_the_gradient() -> None:
    batch, now = one_row([-1.0, -1.0, -1.0], -1.0), live([24.0, -50.0, 18.0])
    ratio = TokenRatio()(now, batch)
    assert ratio[0].tolist() == [LOG_RATIO_LIMIT, -LOG_RATIO_LIMIT, 19.0]
    gain(TokenRatio(), PlainRatio(), now, batch).sum().backward()
    assert now.logp.grad[0].tolist() == pytest.approx([0.0, 0.0, -math.exp(19)])


class PlainRatio(Clip):
    """rho A without a clip, to see the ratio alone."""

    def __call__(self, log_ratio: Tensor, live: Live, batch: Credited) -> Tensor:
        """The gain [N T]."""
        return log_ratio.exp() * batch.advantage


# Surrogates


@given(seed=SEEDS, low=st.floats(0, 0.5), high=st.floats(0, 0.5), dual=st.sampled_from([None, 2.0, 3.0]))
def test_clip_is_the_formula(seed: int, low: float, high: float, dual: float | None) -> None:
    batch = as_credited(draw_batch(seed), seed)
    log_ratio = torch.where(batch.mask, torch.randn(batch.mask.shape, dtype=torch.float64), 0.0)
    found = Clip(low=low, high=high, dual=dual)(log_ratio, live(log_ratio), batch)
    for i in range(batch.size):
        for t in range(batch.mask.shape[1]):
            x, a = float(log_ratio[i, t]), float(batch.advantage[i, t])
            expected = oracle.clip_gain(x, a, low, high, dual) if batch.mask[i, t] else 0.0
            assert float(found[i, t].detach()) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(
    ("rho", "advantage", "expected", "slope"),
    [
        (1.0, 1.0, 1.0, 1.0),
        (1.1, 1.0, 1.1, 1.1),
        (6.0, 1.0, 1.2, 0.0),
        (0.5, 1.0, 0.5, 0.5),
        (1.5, -1.0, -1.5, -1.5),
        (0.5, -1.0, -0.8, 0.0),
        (5.0, -1.0, -5.0, -5.0),
        (1.7, 0.0, 0.0, 0.0),
    ],
)
def test_goldens_of_the_clip(rho: float, advantage: float, expected: float, slope: float) -> None:
    """Value and gradient by log pi, on each side of the band and for each sign."""
    batch, now = one_row([-1.0], advantage), live([-1.0 + math.log(rho)])
    value = gain(TokenRatio(), Clip(), now, batch).sum()
    value.backward()
    assert float(value.detach()) == pytest.approx(expected)
    assert float(now.logp.grad) == pytest.approx(slope)


@pytest.mark.parametrize(("rho", "loss"), [(5.0, 3.0), (1.5, 1.5), (0.5, 0.8)])
def test_goldens_of_the_dual_clip(rho: float, loss: float) -> None:
    batch, now = one_row([-1.0], -1.0), live([-1.0 + math.log(rho)])
    assert float(-gain(TokenRatio(), Clip(dual=3.0), now, batch).sum().detach()) == pytest.approx(loss)


def test_the_dual_clip_never_touches_positive_advantages() -> None:
    batch, now = one_row([-1.0, -1.0], 1.0), live([1.0, -3.0])
    both = [gain(TokenRatio(), Clip(dual=dual), now, batch).detach() for dual in (None, 1.5)]
    assert torch.equal(*both)


def test_golden_of_the_clip_over_tokens() -> None:
    """d = (.6, -.1, -.6), clip .2: mean gain .884550 for A = 1 and -1.175652 for A = -1."""
    for advantage, expected in ((1.0, 0.884550), (-1.0, -1.175652)):
        batch, now = one_row([-1.0] * 3, advantage), live([-0.4, -1.1, -1.6])
        mean = (TokenMean()(batch) * gain(TokenRatio(), Clip(), now, batch)).sum()
        assert round(float(mean.detach()), 6) == expected


def test_the_clips_metric_counts_what_lost_its_gradient() -> None:
    batch = one_row([-1.0] * 5, [1.0, 1.0, -1.0, -1.0, 0.0])
    now = live([-1 + math.log(rho) for rho in (2.0, 0.5, 2.0, 0.5, 2.0)])
    metrics = Clip().measure(TokenRatio()(now, batch).detach(), now, batch)
    assert (metrics["clip/high"].value, metrics["clip/low"].value) == (0.2, 0.2)
    gain(TokenRatio(), Clip(), now, batch).sum().backward()
    assert [g == 0 for g in now.logp.grad[0].tolist()] == [True, False, False, True, True]


@given(seed=SEEDS)
def test_policy_gradient_is_the_advantage(seed: int) -> None:
    batch = as_credited(draw_batch(seed), seed)
    now = live(batch.old_logp)
    value = PolicyGradient()(None, now, batch)
    value.sum().backward()
    assert torch.equal(value.detach(), batch.advantage * batch.old_logp)
    assert torch.equal(now.logp.grad, batch.advantage)


# Finite differences


def smooth(x: Tensor, batch: Credited) -> bool:
    """True if no ratio stands near a kink, where a finite difference sees both sides."""
    kinks = torch.tensor([math.log(0.8), math.log(1.2), math.log(3.0)], dtype=torch.float64)
    ratios = [TokenRatio()(Live(x), batch), SequenceRatio()(Live(x), batch)]
    return all(float((ratio[batch.mask][:, None] - kinks).abs().min()) > 1e-4 for ratio in ratios if batch.mask.any())


@pytest.mark.parametrize("ratio", [TokenRatio(), SequenceRatio(), TokenRatio(anchor="sampled")], ids=str)
@pytest.mark.parametrize("surrogate", [Clip(), Clip(low=0.2, high=0.28, dual=3.0), PolicyGradient()], ids=str)
def test_gradients_of_gains(ratio: Component, surrogate: Component) -> None:
    for seed in range(3):
        batch = as_credited(draw_batch(seed, groups=1), seed)
        x = batch.old_logp + 0.4 * torch.randn(batch.mask.shape, generator=torch.manual_seed(seed)).double()
        if not smooth(x, batch):
            continue
        first = None if isinstance(surrogate, PolicyGradient) else ratio

        def value(x: Tensor, batch: Credited = batch, first: Component | None = first) -> Tensor:
            return (batch.weight * gain(first, surrogate, Live(x), batch)).sum()

        now = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(value(now), now)
        assert torch.allclose(found, differences(value, x), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("to", ["reference", "old"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_of_the_divergence(estimator: str, to: str) -> None:
    """The straight-through form is differentiated as k2, whose gradient it borrows."""
    batch = as_credited(draw_batch(1, groups=1), 1)
    part = Kl(estimator=estimator, to=to)
    shown = Kl(estimator="k2" if estimator == "k3_straight_through" else estimator, to=to)
    x = batch.old_logp + 0.4 * torch.randn(batch.mask.shape, generator=torch.manual_seed(2)).double()
    now = x.clone().requires_grad_()
    (found,) = torch.autograd.grad((batch.weight * part(Live(now), batch)).sum(), now)
    expected = differences(lambda x: (batch.weight * shown(Live(x), batch)).sum(), x)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-8)


# Penalties


@pytest.mark.parametrize("estimator", ESTIMATORS)
@given(seed=SEEDS, to=st.sampled_from(["reference", "old"]))
def test_the_divergence_is_the_formula(estimator: str, seed: int, to: str) -> None:
    batch = as_credited(draw_batch(seed))
    now = batch.old_logp + 0.5 * torch.randn(batch.mask.shape, generator=torch.manual_seed(seed)).double()
    found = Kl(estimator=estimator, to=to)(Live(now), batch)
    anchor = batch.columns["ref_logp"] if to == "reference" else batch.old_logp
    for i in range(batch.size):
        for t in range(batch.mask.shape[1]):
            x, moved = float(now[i, t] - anchor[i, t]), float(now[i, t] - batch.old_logp[i, t])
            expected = oracle.kl(estimator, x, moved) if batch.mask[i, t] else 0.0
            assert float(found[i, t]) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_the_divergence_asks_for_a_reference_only_if_it_reads_one() -> None:
    assert Kl().columns() == ("ref_logp",)
    assert Kl(to="old").columns() == ()


def test_entropy_is_a_bonus() -> None:
    batch = one_row([-1.0, -1.0], 1.0, mask=[True, False])
    cost = Entropy()(Live(batch.old_logp, {"entropy": torch.tensor([[0.7, math.nan]]).double()}), batch)
    assert cost[0].tolist() == pytest.approx([-0.7, 0.0])
    assert Entropy.live == ("entropy",)


def test_a_penalty_of_nothing_is_left_out_instead() -> None:
    for cls in (Kl, Entropy):
        with pytest.raises(ValueError, match="greater than 0"):
            cls(coef=0.0)
    with pytest.raises(ConfigError, match=r"recipe.penalties.kl.weighting: there is no weighting 'tokens'"):
        Kl(weighting="tokens")


# Edges


@pytest.mark.parametrize("part", [Clip(), Clip(dual=3.0)], ids=["clip", "dual"])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("value", [200.0, -200.0, math.inf, -math.inf])
def test_extreme_ratios_stay_finite(part: Clip, advantage: float, value: float) -> None:
    batch, now = one_row([-1.0, -2.0], advantage), live([value, -2.1])
    for ratio in (TokenRatio(), SequenceRatio()):
        now.logp.grad = None
        total = gain(ratio, part, now, batch).sum()
        total.backward()
        assert total.isfinite()
        assert now.logp.grad.isfinite().all()


@pytest.mark.parametrize("surrogate", [Clip(), Clip(dual=3.0), PolicyGradient()], ids=str)
@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e300])
def test_an_advantage_at_padding_is_never_read(surrogate: Component, filler: float) -> None:
    batch, now = one_row([-1.0, -2.0], [1.0, filler], mask=[True, False]), live([-1.1, 5.0])
    value = gain(None if isinstance(surrogate, PolicyGradient) else TokenRatio(), surrogate, now, batch)
    assert float(value[0, 1].detach()) == 0
    value.sum().backward()
    assert now.logp.grad.isfinite().all()
    assert float(now.logp.grad[0, 1]) == 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("value", [200.0, -200.0, math.inf, -math.inf])
def test_extreme_divergences_stay_finite(estimator: str, value: float) -> None:
    batch = one_row([-1.0, -2.0], 1.0)
    now = live([value, -2.1])
    cost = Kl(estimator=estimator, to="old")(now, batch).sum()
    cost.backward()
    assert cost.isfinite()
    assert now.logp.grad.isfinite().all()
