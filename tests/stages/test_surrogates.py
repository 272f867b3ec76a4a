"""Ratios of whole rows and the surrogates of the clipped family: oracles, goldens, derivatives, numbers at the edge, metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from covey.batch import Credited, Live
from covey.errors import ConfigError
from covey.recipes.recipe import Recipe
from covey.registry import Component, kinds
from covey.stages.detached import DetachedWeight, DivergenceMask, GammaWeight
from covey.stages.masked import LOG_RATIO_LIMIT
from covey.stages.objective import objective
from covey.stages.ratios import SequenceRatio, SequenceSumRatio, SequenceTokenRatio, TokenRatio
from covey.stages.surrogates import Clip, GeometricMean, PolicyGradient, SoftGate, Surrogate
from covey.stages.weighting import RolloutMean
from tests.stages import oracle_surrogates as oracle
from tests.stages.data import as_credited, draw_batch
from tests.stages.test_live import gain, live, one_row

SEEDS = st.integers(0, 10_000)
RATIOS = (TokenRatio(), SequenceRatio(), SequenceTokenRatio(), SequenceSumRatio())
LOW, HIGH = 0.1, 0.15

PARTS: dict[str, tuple[Component, Surrogate, Callable[[oracle.Row], oracle.Found]]] = {
    "sequence": (SequenceRatio(), Clip(low=LOW, high=HIGH), lambda row: oracle.sequence(row, LOW, HIGH)),
    "sequence_sum": (SequenceSumRatio(), Clip(low=LOW, high=HIGH), lambda row: oracle.sequence_sum(row, LOW, HIGH)),
    "sequence_token": (
        SequenceTokenRatio(),
        Clip(low=LOW, high=HIGH),
        lambda row: oracle.sequence_token(row, LOW, HIGH),
    ),
    "geometric_mean": (
        TokenRatio(),
        GeometricMean(low=0.2, high=0.3),
        lambda row: oracle.geometric_mean(row, 0.2, 0.3),
    ),
    "detached_weight": (
        TokenRatio(),
        DetachedWeight(low=0.8, high=1.2),
        lambda row: oracle.detached(row, oracle.truncated(0.8, 1.2)),
    ),
    "detached_weight that drops": (
        TokenRatio(),
        DetachedWeight(low=0.0, high=1.5, drop_low=0.1, drop_high=0.3),
        lambda row: oracle.detached(row, oracle.truncated(0.0, 1.5, 0.1, 0.3)),
    ),
    "gamma_weight": (TokenRatio(), GammaWeight(), lambda row: oracle.detached(row, oracle.gamma((2, 3), (3, 2)))),
    "divergence_mask tv": (
        TokenRatio(),
        DivergenceMask(low=0.05, high=0.1),
        lambda row: oracle.detached(row, oracle.masked_by_divergence("tv", 0.05, 0.1, None)),
    ),
    "divergence_mask kl": (
        TokenRatio(),
        DivergenceMask(divergence="kl", low=0.01, high=0.02, cap=1.3),
        lambda row: oracle.detached(row, oracle.masked_by_divergence("kl", 0.01, 0.02, 1.3)),
    ),
    "soft_gate": (TokenRatio(), SoftGate(positive=1.0, negative=2.0), lambda row: oracle.soft_gate(row, 1.0, 2.0)),
}


def drawn(seed: int, spread: float = 0.5) -> tuple[Credited, Tensor]:
    """A batch of random advantages, and log-probabilities (below 0) near the old ones."""
    batch = as_credited(draw_batch(seed), seed)
    batch = batch.with_(old_logp=torch.where(batch.mask, batch.old_logp - 0.05, 0.0))
    noise = spread * torch.randn(batch.mask.shape, generator=torch.manual_seed(seed), dtype=torch.float64)
    return batch, torch.where(batch.mask, (batch.old_logp + noise).clamp(max=-1e-3), 0.0)


# Values and derivatives are those of the formulas


@pytest.mark.parametrize("name", PARTS)
@given(seed=SEEDS)
def test_gain_and_gradient_are_the_formula(name: str, seed: int) -> None:
    ratio, surrogate, formula = PARTS[name]
    batch, logp = drawn(seed)
    now = live(logp)
    found = gain(ratio, surrogate, now, batch)
    (slope,) = torch.autograd.grad((batch.weight * found).sum(), now.logp)
    for i in range(batch.size):
        counted = batch.mask[i]
        values = [t[i][counted].tolist() for t in (logp, batch.old_logp, batch.advantage, batch.weight)]
        gains, slopes = formula(oracle.Row(*values[:3]))
        expected = [sum(w * line[u] for w, line in zip(values[3], slopes, strict=True)) for u in range(len(gains))]
        assert found[i][counted].tolist() == pytest.approx(gains, rel=1e-10, abs=1e-12)
        assert slope[i][counted].tolist() == pytest.approx(expected, rel=1e-10, abs=1e-12)
        assert (found[i][~counted] == 0).all()
        assert (slope[i][~counted] == 0).all()


SMOOTH = {
    "soft_gate": (TokenRatio(), SoftGate()),
    "soft_gate of a row": (SequenceRatio(), SoftGate(positive=2.0, negative=3.0)),
    "geometric_mean": (TokenRatio(), GeometricMean()),
    "geometric_mean to the sampler": (TokenRatio(anchor="sampled"), GeometricMean(low=0.1, high=0.1)),
    "clip of a sum": (SequenceSumRatio(), Clip()),
    "clip of a mean": (SequenceRatio(), Clip(low=3e-4, high=4e-4)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_finite_differences(name: str) -> None:
    """float64, by torch's own check; at a kink it would fail, and none of these draws stands on one."""
    ratio, surrogate = SMOOTH[name]
    for seed in range(3):
        batch, logp = drawn(seed)

        def value(x: Tensor, batch: Credited = batch) -> Tensor:
            return (batch.weight * gain(ratio, surrogate, Live(x), batch)).sum()

        assert torch.autograd.gradcheck(value, (logp.clone().requires_grad_(),), eps=1e-6, atol=1e-7)


@given(seed=SEEDS)
def test_a_token_form_is_the_sequence_form_for_one_advantage_per_row(seed: int) -> None:
    """Value and gradient, under the mean over rollouts: arXiv 2507.18071, section 4.3."""
    batch, logp = drawn(seed, 0.02)
    batch = batch.with_(advantage=torch.where(batch.mask, batch.advantage[:, :1].expand(batch.mask.shape), 0.0))
    weight, found = RolloutMean()(batch), []
    for ratio in (SequenceRatio(), SequenceTokenRatio()):
        now = live(logp)
        value = (weight * gain(ratio, Clip(low=3e-3, high=4e-3), now, batch)).sum()
        found.append((value.detach(), torch.autograd.grad(value, now.logp)[0]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-12, atol=1e-15)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-12, atol=1e-15)


@given(seed=SEEDS, low=st.floats(0, 0.5), high=st.floats(0, 0.5))
def test_the_mask_of_a_detached_weight_recovers_the_tokens_that_a_clip_drops(
    seed: int, low: float, high: float
) -> None:
    """arXiv 2506.13585 eq. 6-7: the gradient is then that of the clip."""
    batch, logp = drawn(seed)
    found = []
    for part in (Clip(low=low, high=high), DetachedWeight(high=1e9, drop_low=low, drop_high=high)):
        now = live(logp)
        found.append(torch.autograd.grad((batch.weight * gain(TokenRatio(), part, now, batch)).sum(), now.logp)[0])
    assert torch.allclose(*found, rtol=1e-12, atol=1e-15)


# Goldens by hand


def worked(ratio: Component, surrogate: Surrogate, moved: list[float], advantage: list[float] | float) -> Any:
    """Gains and gradient of the mean over the row, for log-ratios `moved` from old log-probabilities of -1."""
    batch, now = one_row([-1.0] * len(moved), advantage), live([-1.0 + d for d in moved])
    found = gain(ratio, surrogate, now, batch)
    (found / len(moved)).sum().backward()
    return [round(x, 6) for x in found[0].tolist()], [round(x, 6) for x in now.logp.grad[0].tolist()]


def test_golden_of_the_sequence_ratio_with_the_gradient_of_tokens() -> None:
    """Log-ratios (.1, -.2, .3): s = 1.068939, dJ/dl = s A / L = .356313; with A = (1, 1, -1) the last one turns around."""
    wide = Clip(low=1.0, high=10.0)
    assert worked(SequenceTokenRatio(), wide, [0.1, -0.2, 0.3], 1.0) == ([1.068939] * 3, [0.356313] * 3)
    gains, slope = worked(SequenceTokenRatio(), wide, [0.1, -0.2, 0.3], [1.0, 1.0, -1.0])
    assert gains == [1.068939, 1.068939, -1.068939]
    assert slope == [0.356313, 0.356313, -0.356313]


def test_golden_of_the_sum_of_log_ratios() -> None:
    """(.1, -.2, .3): S = exp(.2) = 1.221403, the gradient of each token S A, whatever the length."""
    gains, slope = worked(SequenceSumRatio(), Clip(high=10.0), [0.1, -0.2, 0.3], 1.0)
    assert gains == [1.221403] * 3
    assert slope == [1.221403] * 3


def test_goldens_of_the_geometric_mean() -> None:
    """d = (.6, -.1, -.6), band .4: exp(-.1) for A = 1, exp(.033333) for A = -1; the sequence ratio has exp(-.033333)."""
    gains, slope = worked(TokenRatio(), GeometricMean(), [0.6, -0.1, -0.6], 1.0)
    assert gains == [0.904837] * 3
    assert slope == [0.0, 0.301612, 0.301612]
    gains, slope = worked(TokenRatio(), GeometricMean(), [0.6, -0.1, -0.6], -1.0)
    assert gains == [-1.033895] * 3
    assert slope == [-0.344632, -0.344632, 0.0]
    assert worked(SequenceRatio(), Clip(low=1.0, high=9.0), [0.6, -0.1, -0.6], 1.0)[0] == [0.967216] * 3
    assert worked(TokenRatio(), GeometricMean(), [0.6, -0.1, -0.6], 0.0) == ([0.0] * 3, [0.0] * 3)


@pytest.mark.parametrize(
    ("surrogate", "loss", "slope"),
    [(DetachedWeight(), 5.0, -5.0), (DetachedWeight(low=0.8, high=1.2), 1.2, -1.2), (Clip(), -1.2, 0.0)],
    ids=["bound 5", "band .8 to 1.2", "clip"],
)
def test_goldens_of_the_detached_weight(surrogate: Surrogate, loss: float, slope: float) -> None:
    """l = -1, rho = 6, A = 1."""
    batch, now = one_row([-1.0 - math.log(6)], 1.0), live([-1.0])
    value = -gain(TokenRatio(), surrogate, now, batch).sum()
    value.backward()
    assert round(float(value.detach()), 6) == loss
    assert round(float(now.logp.grad), 6) == slope


def test_a_bound_below_one_shrinks_what_the_policy_itself_drew() -> None:
    """At ratio 1 the gradient is -0.2 in place of -1: a recipe refuses it, unless it is waived by name."""
    assert worked(TokenRatio(), DetachedWeight(high=0.2), [0.0], 1.0) == ([-0.2], [0.2])
    recipe = _recipe(TokenRatio(), DetachedWeight())
    with pytest.raises(ConfigError, match="a bound below 1 shrinks"):
        recipe.but(**{"surrogate.high": 0.2})
    waived = recipe.but(**{"surrogate.high": 0.2}, waivers=("weight_below_one",))
    assert "first_step" in waived.exemptions()
    assert "first_step" not in recipe.exemptions()


@pytest.mark.parametrize(
    ("p", "q", "advantage", "tv", "kl"),
    [
        (0.5, 0.3, 1.0, 0.0, 0.0),  # tv .2; kl .3 log .6 + .7 log 1.4 = .082283
        (0.4, 0.3, 1.0, 1.333333, 1.333333),  # tv .1; kl .021600
        (0.5, 0.3, -1.0, -1.666667, -1.666667),  # moved against the advantage: kept
        (0.1, 0.3, -1.0, 0.0, 0.0),  # kl .3 log 3 + .7 log(.7/.9) = .153663
        (0.01, 0.0001, 1.0, 100.0, 100.0),  # a rare token moves freely: ratio 100, tv .0099, kl .009489
        (0.8, 0.99, -1.0, 0.0, 0.0),  # a frequent one does not: ratio .808, tv .19, kl .181
    ],
)
def test_goldens_of_the_divergence_mask(p: float, q: float, advantage: float, tv: float, kl: float) -> None:
    """The derivative by log pi: rho A, or 0 where the probability moved too far."""
    for part, expected in ((DivergenceMask(), tv), (DivergenceMask(divergence="kl", low=0.05, high=0.05), kl)):
        batch, now = one_row([math.log(q)], advantage), live([math.log(p)])
        gain(TokenRatio(), part, now, batch).sum().backward()
        assert round(float(now.logp.grad), 6) == expected
    batch, now = one_row([math.log(0.0001)], 1.0), live([math.log(0.01)])
    gain(TokenRatio(), DivergenceMask(cap=20.0), now, batch).sum().backward()
    assert round(float(now.logp.grad), 6) == 20.0


def test_a_divergence_can_be_measured_to_the_sampler() -> None:
    batch = one_row([math.log(0.3)], 1.0).with_(sampled_logp=torch.tensor([[math.log(0.45)]], dtype=torch.float64))
    for anchor, expected in (("old", 0.0), ("sampled", 0.5 / 0.3)):
        now = live([math.log(0.5)])
        gain(TokenRatio(), DivergenceMask(anchor=anchor), now, batch).sum().backward()
        assert float(now.logp.grad) == pytest.approx(expected)


def test_goldens_of_the_soft_gate() -> None:
    """rho = 2: 4 sigmoid(1) = 2.924234, slope 4 s (1 - s) 2 = 1.572895; A = -1, tau 1.05: -2.822, -1.536220. At rho = 1: A."""
    assert worked(TokenRatio(), SoftGate(), [math.log(2)], 1.0) == ([2.924234], [1.572895])
    assert worked(TokenRatio(), SoftGate(), [math.log(2)], -1.0) == ([-2.822], [-1.53622])
    assert worked(TokenRatio(), SoftGate(), [0.0], 0.7)[1] == [0.7]


def test_goldens_of_the_gamma_weight() -> None:
    """w = 2: 2^2 e^-3 = .199148 for A >= 0, 2^3 e^-2 = 1.082682 for A < 0; 1 at w = 1."""
    for d, advantage, slope in ((math.log(2), 1.0, 0.199148), (math.log(2), -1.0, -1.082682), (0.0, 1.0, 1.0)):
        assert worked(TokenRatio(), GammaWeight(), [d], advantage)[1] == [slope]


def test_an_outlier_weighs_less_in_a_geometric_mean() -> None:
    """One log-ratio of +3 among 64, A = -1: a token clip charges e^3 = 20.09 times for it, this one e^(3/64) = 1.048."""
    moved = [3.0] + [0.0] * 63
    token, whole = (worked(TokenRatio(), part, moved, -1.0)[1] for part in (Clip(), GeometricMean()))
    assert token[0] / token[1] == pytest.approx(math.exp(3), rel=1e-4)
    assert whole[0] == whole[1]
    assert whole[0] * 64 == pytest.approx(-math.exp(3 / 64), abs=1e-4)


# Edges


def test_a_row_without_tokens_has_ratio_one() -> None:
    batch = one_row([-1.0, -2.0], 1.0, mask=[False, False])
    for ratio in RATIOS:
        for part in (Clip(), GeometricMean(), DetachedWeight(), SoftGate()):
            now = live([math.nan, 3.0])
            found = gain(ratio, part, now, batch)
            assert (found == 0).all()
            found.sum().backward()
            assert (now.logp.grad == 0).all()


def test_a_ceiling_cuts_and_stops_the_gradient() -> None:
    batch, now = one_row([-30.0, -30.0], -1.0), live([-15.0, -18.0])
    found = SequenceTokenRatio(ceiling=10.0)(now, batch)
    assert found[0].tolist() == [10.0, 10.0]
    found.sum().backward()
    assert now.logp.grad[0].tolist() == [0.0, 0.0]
    assert SequenceTokenRatio()(now, batch)[0].tolist() == [13.5, 13.5]
    for wrong in (0.0, LOG_RATIO_LIMIT + 1):
        with pytest.raises(ValidationError):
            SequenceTokenRatio(ceiling=wrong)


def test_a_sum_is_clamped_and_counted() -> None:
    batch, now = one_row([-1.0] * 3, -1.0), live([8.0, 8.0, 8.0])
    found = SequenceSumRatio()(now, batch)
    assert found[0].tolist() == [LOG_RATIO_LIMIT] * 3
    recipe = _recipe(SequenceSumRatio(), Clip())
    assert objective(recipe, now, batch, {})[1]["ratio/clamped"].value == 1.0
    far = live([-1.0, 29.0, -1.0])  # the mean over the row hides that a token of it was cut
    for ratio, tokens in ((SequenceRatio(), 1), (SequenceTokenRatio(), 1), (SequenceSumRatio(), 3), (TokenRatio(), 1)):
        assert objective(_recipe(ratio, Clip()), far, batch, {})[1]["ratio/clamped"].total == tokens
    low = _recipe(SequenceTokenRatio(ceiling=8.5), Clip())
    assert objective(low, now, batch, {})[1]["ratio/clamped"].value == 1.0
    assert objective(_recipe(SequenceTokenRatio(), Clip()), now, batch, {})[1]["ratio/clamped"].value == 0.0


def _recipe(ratio: Component, surrogate: Surrogate) -> Recipe:
    return Recipe(
        name="part",
        mix="weighted_sum",
        advantage="group_norm",
        weighting="rollout_mean",
        ratio=ratio if surrogate.reads_ratio else None,
        surrogate=surrogate,
    )


ALL = [
    GeometricMean(),
    DetachedWeight(),
    DetachedWeight(drop_low=0.2, drop_high=0.2),
    GammaWeight(),
    DivergenceMask(),
    DivergenceMask(divergence="kl", cap=3.0),
    SoftGate(),
]


@pytest.mark.parametrize("part", ALL, ids=str)
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("value", [200.0, -200.0, math.inf, -math.inf, 0.0])
def test_extreme_ratios_stay_finite(part: Surrogate, advantage: float, value: float) -> None:
    batch = one_row([-1.0, -2.0], advantage)
    for ratio in RATIOS:
        now = live([value, -2.1])
        total = gain(ratio, part, now, batch).sum()
        total.backward()
        assert total.isfinite()
        assert now.logp.grad.isfinite().all()
        still = Live(now.logp.detach())
        metrics = part.measure(ratio(still, batch), still, batch)
        assert all(math.isfinite(metric.value) for metric in metrics.values())


@pytest.mark.parametrize("part", [*ALL, PolicyGradient()], ids=str)
@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e300])
def test_an_advantage_at_padding_is_never_read(part: Surrogate, filler: float) -> None:
    batch, now = one_row([-1.0, -2.0], [1.0, filler], mask=[True, False]), live([-1.1, 5.0])
    alone, only = one_row([-1.0], 1.0), live([-1.1])
    ratio = TokenRatio() if part.reads_ratio else None
    found, expected = gain(ratio, part, now, batch), gain(ratio, part, only, alone)
    assert found[0].tolist() == [float(expected.detach()), 0.0]
    found.sum().backward()
    assert now.logp.grad.isfinite().all()


def test_a_token_that_is_ruled_out_has_no_say_in_a_score() -> None:
    """log pi = -inf: its gain is 0, not -inf, and the others keep theirs."""
    batch, now = one_row([-1.0, -2.0], 1.0), live([-math.inf, -2.0])
    for part in (PolicyGradient(), DetachedWeight(), DivergenceMask(), GammaWeight()):
        found = gain(TokenRatio() if part.reads_ratio else None, part, now, batch)
        assert found[0].tolist() == [0.0, -2.0]


# Metrics


def test_a_clip_reports_what_left_its_band_and_what_the_dual_bound_caught() -> None:
    batch = one_row([-1.0] * 5, [1.0, 1.0, -1.0, -1.0, 0.0])
    now = live([-1 + math.log(rho) for rho in (2.0, 0.5, 4.0, 0.5, 2.0)])
    metrics = Clip(dual=3.0).measure(TokenRatio()(now, batch).detach(), now, batch)
    assert {name: metric.value for name, metric in metrics.items()} == {
        "clip/low": 0.2,
        "clip/high": 0.2,
        "clip/dual": 0.2,
        "ratio/out_of_band": 1.0,
    }
    assert "clip/dual" not in Clip().measure(TokenRatio()(now, batch).detach(), now, batch)
    gain(TokenRatio(), Clip(dual=3.0), now, batch).sum().backward()
    assert [g == 0 for g in now.logp.grad[0].tolist()] == [True, False, True, True, True]


@given(seed=SEEDS)
def test_what_is_reported_as_clipped_has_no_gradient(seed: int) -> None:
    """The shares are exactly those of the tokens whose gradient is gone; only tokens with weight count."""
    batch, logp = drawn(seed)
    batch = batch.with_(weight=batch.mask.double())
    for part in (Clip(), GeometricMean(low=0.2, high=0.3), DivergenceMask(low=0.05, high=0.1)):
        now = live(logp)
        (slope,) = torch.autograd.grad(gain(TokenRatio(), part, now, batch).sum(), now.logp)
        metrics = part.measure(TokenRatio()(now, batch).detach(), Live(logp), batch)
        gone = float(((slope == 0) & batch.mask).sum())
        if batch.mask.any():
            assert metrics["clip/low"].total + metrics["clip/high"].total == gone


def test_a_detached_weight_reports_its_bounds() -> None:
    batch = one_row([-1.0] * 4, [1.0, -1.0, -1.0, 1.0])
    now = live([-1 + math.log(rho) for rho in (6.0, 6.0, 0.5, 1.0)])
    moved = TokenRatio()(now, batch).detach()
    found = {name: m.value for name, m in DetachedWeight(low=0.8).measure(moved, now, batch).items()}
    assert found == {
        "clip/weight_low": 0.25,
        "clip/weight_high": 0.5,
        "clip/weight_high_negative": 0.25,
        "weight/mean": (5 + 5 + 0.8 + 1) / 4,
    }
    dropping = DetachedWeight(drop_low=0.2, drop_high=0.2).measure(moved, now, batch)
    assert (dropping["clip/low"].value, dropping["clip/high"].value) == (0.25, 0.25)


def test_gates_and_masks_report_how_much_they_let_through() -> None:
    batch, now = one_row([-1.0, -1.0], [1.0, 1.0]), live([-1.0, -1.0 + math.log(2)])
    moved = TokenRatio()(now, batch).detach()
    assert SoftGate().measure(moved, Live(now.logp.detach()), batch)["gate/mean"].value == pytest.approx(
        (1 + 0.786448) / 2
    )
    assert GammaWeight().measure(moved, Live(now.logp.detach()), batch)["weight/mean"].value == pytest.approx(
        (1 + 0.199148) / 2, rel=1e-5
    )
    found = DivergenceMask(cap=1.5).measure(moved, Live(now.logp.detach()), batch)
    assert found["clip/high"].value == 0.5
    assert found["clip/weight_high"].value == 0.5
    assert found["ratio/divergence"].value == pytest.approx(math.exp(-1) / 2)


# Formulas


@pytest.mark.parametrize(
    "part",
    [*ALL, *RATIOS, PolicyGradient(), Clip(), Clip(dual=3.0), SequenceTokenRatio(ceiling=10.0, anchor="sampled")],
    ids=str,
)
def test_a_formula_holds_its_options(part: Component) -> None:
    text = part.latex()
    assert text
    assert text.count("{") == text.count("}")
    assert text.count(r"\left") == text.count(r"\right")
    assert text.count(r"\begin{cases}") == text.count(r"\end{cases}")
    if getattr(part, "anchor", "old") == "sampled":
        assert "samp" in text


def test_every_ratio_and_surrogate_that_ships_has_a_formula() -> None:
    for stage in ("ratio", "surrogate"):
        for kind, cls in kinds(stage).items():
            if cls.__module__ in ("covey.stages.ratios", "covey.stages.surrogates", "covey.stages.detached"):
                assert cls().latex(), kind
    assert "3" in Clip(dual=3.0).latex()
    assert "0.0004" not in Clip(high=4e-4).latex()
    assert "1.0004" in Clip(high=4e-4).latex()
