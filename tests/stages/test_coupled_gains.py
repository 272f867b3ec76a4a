"""Surrogates with one value per group, and those that hold the entropy: oracles, goldens, finite differences, edges."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from covey.batch import Credited, Keep, Live
from covey.errors import ConfigError
from covey.stages.coupled import Contrast, Residual, TwoClasses
from covey.stages.covariance import CovarianceClip, CovarianceKl, covariance, largest
from covey.stages.surrogates import Clip
from covey.stages.weighting import GroupSum
from tests.stages import oracle_coupled as oracle
from tests.stages.data import as_credited, draw_batch, draw_keep, with_score

SEEDS = st.integers(0, 10_000)


def responses(
    logp: Sequence[float], old: Sequence[float], advantage: Sequence[float], group: Sequence[int] | None = None
) -> tuple[Live, Credited]:
    """Responses of one token each, with the weights of `group_sum`."""
    n = len(logp)
    base = draw_batch(0, groups=1, most=1, width=1).rows(torch.zeros(n, dtype=torch.long))

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None]

    batch = base.with_(
        mask=torch.ones(n, 1, dtype=torch.bool),
        old_logp=column(old),
        sampled_logp=column(old),
        group=torch.tensor(group or [0] * n),
        rollout=torch.arange(n),
        keep=Keep.all(n),
        columns={"ref_logp": column(old), "noise": column([(7 * i % 5) / 5 for i in range(n)])},
    )
    credited = as_credited(batch)
    return Live(column(logp).requires_grad_()), credited.with_(advantage=column(advantage), weight=GroupSum()(batch))


def value(surrogate: object, live: Live, batch: Credited) -> Tensor:
    """The gain of the step."""
    return (batch.weight * surrogate(None, live, batch)).sum()


def step(seed: int, *, filtered: bool = False) -> tuple[Live, Credited]:
    """A ragged batch with advantages per rollout and a policy beside the old one."""
    batch = draw_batch(seed, columns=("ref_logp", "noise"))
    if filtered:
        batch = batch.with_(keep=draw_keep(batch, seed))
    draw = torch.Generator().manual_seed(seed)
    worth = {int(r): float(torch.randn((), generator=draw)) for r in batch.rollout.unique()}
    advantage = torch.tensor([worth[int(r)] for r in batch.rollout], dtype=torch.float64)[:, None].expand(
        batch.mask.shape
    )
    credited = as_credited(batch, seed).with_(
        advantage=torch.where(batch.mask, advantage, 0.0), weight=GroupSum()(batch)
    )
    moved = batch.old_logp + 0.4 * torch.randn(batch.mask.shape, generator=draw, dtype=torch.float64)
    return Live(moved.requires_grad_()), credited


def tables(values: Tensor, batch: Credited) -> dict[int, dict[int, list[float]]]:
    """Counted values by group and rollout, for the oracles."""
    counted = batch.mask & batch.keep.loss[:, None]
    return oracle.by_rollout(values.tolist(), counted.tolist(), batch.rollout.tolist(), batch.group.tolist())


def slopes(live: Live, batch: Credited) -> dict[int, list[float]]:
    """The gradient on each counted token, by rollout."""
    found = live.logp.grad if live.logp.grad is not None else torch.zeros_like(live.logp)
    return {r: slope for members in tables(found, batch).values() for r, slope in members.items()}


def groups_in_denominator(batch: Credited) -> float:
    """How many groups the mean is over."""
    return float(len(batch.group[batch.keep.denominator].unique()))


def differences(function: Callable[[Tensor], Tensor], x: Tensor, by: float = 1e-6) -> Tensor:
    """Central finite differences of a scalar function."""
    out = torch.zeros_like(x)
    for i in range(x.numel()):
        moved = [x.clone(), x.clone()]
        moved[0].view(-1)[i] += by
        moved[1].view(-1)[i] -= by
        out.view(-1)[i] = (function(moved[0]) - function(moved[1])) / (2 * by)
    return out


# Residuals


def test_golden_of_the_residual() -> None:
    """coef .1, log-probabilities of whole responses: loss .128646 and slopes that sum to 0."""
    live, batch = responses((-10, -12, -11, -9), (-10.5, -11, -11, -10), (0.5, -0.5, -0.5, 0.5))
    loss = -value(Residual(), live, batch)
    loss.backward()
    assert round(float(loss.detach()), 6) == 0.128646
    assert [round(float(g), 6) for g in live.logp.grad] == [-0.015417, 0.012917, 0.01625, -0.01375]
    assert float(live.logp.grad.sum()) == pytest.approx(0, abs=1e-15)


@settings(max_examples=40)
@given(seed=SEEDS, filtered=st.booleans(), anchor=st.sampled_from(["old", "reference"]))
def test_residuals_are_the_formula(seed: int, filtered: bool, anchor: str) -> None:
    live, batch = step(seed, filtered=filtered)
    part = Residual(coef=0.3, anchor=anchor)
    other = batch.old_logp if anchor == "old" else batch.columns["ref_logp"]
    gain = value(part, live, batch)
    gain.backward()
    loss, expected = oracle.residual(
        tables(live.logp.detach(), batch), tables(other, batch), tables(batch.advantage, batch), 0.3
    )
    spoken = len(set(batch.group.tolist()))
    scale = spoken / groups_in_denominator(batch) if batch.keep.denominator.any() else 0.0
    assert float(-gain.detach()) == pytest.approx(loss * scale, rel=1e-10, abs=1e-14)
    for rollout, found in slopes(live, batch).items():
        assert found == pytest.approx([-scale * expected[rollout]] * len(found), rel=1e-9, abs=1e-13)


def test_the_mean_that_is_stopped_leaves_the_gradient_as_it_is() -> None:
    """Finite differences of the whole loss, in which the mean moves too."""
    live, batch = step(3)
    part = Residual(coef=0.5)
    (found,) = torch.autograd.grad(value(part, live, batch), live.logp)
    expected = differences(lambda x: value(part, Live(x), batch), live.logp.detach())
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_a_masked_response_leaves_both_means() -> None:
    """A filtered member is absent from Q's mean and from the advantages': the rest is the loss of the smaller group."""
    four = (-10.0, -12, -11, -9), (-10.5, -11, -11, -10), (0.5, -0.5, -0.5, 0.5)
    live, batch = responses(*four)
    keep = Keep(torch.tensor([True, True, True, False]), batch.keep.statistics, batch.keep.denominator)
    smaller_live, smaller = responses(*(part[:3] for part in four))
    found = value(Residual(), live, batch.with_(keep=keep))
    assert float(found.detach()) == pytest.approx(float(value(Residual(), smaller_live, smaller).detach()), rel=1e-12)


def test_a_group_of_one_has_no_residual() -> None:
    live, batch = responses((-1.0, -2.0), (-1.5, -1.5), (0.7, -0.2), group=[0, 1])
    gain = value(Residual(), live, batch)
    gain.backward()
    assert float(gain.detach()) == 0
    assert (live.logp.grad == 0).all()


def test_equal_rewards_pull_implicit_rewards_together() -> None:
    live, batch = responses((-1.0, -3.0), (-2.0, -2.0), (0.0, 0.0))
    value(Residual(), live, batch).backward()
    assert live.logp.grad[:, 0].tolist() == pytest.approx(
        [-0.01, 0.01]
    )  # of the gain: the larger falls, the smaller rises
    assert set(Residual().exemptions()) == {"equal_rewards", "first_step"}


def test_the_first_step_is_the_leave_one_out_gradient_times_coef() -> None:
    """Q = 0: the slope is coef / (G - 1) times the centred reward."""
    live, batch = responses((-1.0,) * 4, (-1.0,) * 4, (0.75, -0.25, -0.25, -0.25))
    value(Residual(), live, batch).backward()
    assert live.logp.grad[:, 0].tolist() == pytest.approx([0.1 / 3 * a for a in (0.75, -0.25, -0.25, -0.25)])


def test_what_the_residual_reports() -> None:
    live, batch = responses((-10, -12, -11, -9), (-10.5, -11, -11, -10), (0.5, -0.5, -0.5, 0.5))
    found = Residual().measure(torch.zeros_like(live.logp), Live(live.logp.detach()), batch)
    assert found["residual/clamped"].value == 0.0
    far, _ = responses((-10, -12, -61, -9), (-10.5, -11, -11, -10), (0.5, -0.5, -0.5, 0.5))
    cut = Residual().measure(torch.zeros_like(far.logp), Live(far.logp.detach()), batch)
    assert cut["residual/clamped"].value == pytest.approx(1 / 4)
    q = [0.1 * x - 0.0125 for x in (0.5, -1, 0, 1)]
    errors = [x - a for x, a in zip(q, (0.5, -0.5, -0.5, 0.5), strict=True)]
    assert found["residual/mse"].value == pytest.approx(sum(e * e for e in errors) / 4)
    assert found["residual/actual_var"].value == pytest.approx(0.25)
    assert found["residual/implicit_var"].value == pytest.approx(sum(x * x for x in q) / 4)
    assert found["residual/cov"].value == pytest.approx(
        sum(x * a for x, a in zip(q, (0.5, -0.5, -0.5, 0.5), strict=True)) / 4
    )


# Contrasts

GOOD, BAD = (-0.5, -0.4), (-0.9, -0.7)


@pytest.mark.parametrize(
    ("tau", "gain", "bad"),
    [
        (None, 0.35, (-0.5, -0.5)),
        (10.0, 0.3495, (-0.495, -0.505)),
        (1.0, 0.345008, (-0.450166, -0.549834)),
        (0.1, 0.306622, (-0.119203, -0.880797)),
    ],
)
def test_goldens_of_the_contrast(tau: float | None, gain: float, bad: tuple[float, float]) -> None:
    live, batch = responses((*GOOD, *BAD), (-1.0,) * 4, (1.0, 1.0, -1.0, -1.0))
    found = value(Contrast(tau=tau), live, batch)
    found.backward()
    assert round(float(found.detach()), 6) == gain
    assert [round(float(g), 6) for g in live.logp.grad] == [0.5, 0.5, *bad]


@settings(max_examples=40)
@given(
    seed=SEEDS,
    filtered=st.booleans(),
    tau=st.sampled_from([None, 0.2, 1.0, 10.0]),
    score=st.sampled_from(["likelihood", "ratio"]),
)
def test_contrasts_are_the_formula(seed: int, filtered: bool, tau: float | None, score: str) -> None:
    live, batch = step(seed, filtered=filtered)
    gain = value(Contrast(tau=tau, score=score), live, batch)
    gain.backward()
    inner = live.logp.detach() if score == "likelihood" else (live.logp.detach() - batch.old_logp).exp()
    scores, advantage, total, expected = tables(inner, batch), tables(batch.advantage, batch), 0.0, {}
    for group, members in scores.items():
        mean = {r: sum(values) / len(values) for r, values in members.items()}
        good = [r for r in members if advantage[group][r][0] > 0]
        bad = [r for r in members if advantage[group][r][0] < 0]
        found, up, down = oracle.contrast([mean[r] for r in good], [mean[r] for r in bad], tau)
        total += found / groups_in_denominator(batch) if found else 0.0
        for rollout, slope in [*zip(good, up, strict=True), *zip(bad, down, strict=True)]:
            own = members[rollout] if score == "ratio" else [1.0] * len(members[rollout])
            expected[rollout] = [slope * x / len(own) for x in own]
    assert float(gain.detach()) == pytest.approx(total, rel=1e-9, abs=1e-12)
    for rollout, found in slopes(live, batch).items():
        scale = 1 / groups_in_denominator(batch) if batch.keep.denominator.any() else 0.0
        assert found == pytest.approx([scale * x for x in expected[rollout]], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("score", ["likelihood", "ratio"])
@pytest.mark.parametrize("tau", [None, 0.5])
def test_gradients_of_contrasts(score: str, tau: float | None) -> None:
    part, most = Contrast(score=score, tau=tau), 0.0
    for seed in range(6):
        live, batch = step(seed)
        (found,) = torch.autograd.grad(value(part, live, batch), live.logp)
        expected = differences(lambda x, batch=batch: value(part, Live(x), batch), live.logp.detach())
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-9)
        most = max(most, float(found.abs().max()))
    assert most > 1e-3


def test_a_large_tau_is_the_mean() -> None:
    live, batch = step(0)
    both = [float(value(Contrast(tau=tau), live, batch).detach()) for tau in (None, 1e7)]
    assert both[0] == pytest.approx(both[1], rel=1e-6)
    assert both[0] != 0


def test_a_group_of_one_class_counts_in_the_mean_only() -> None:
    live, batch = responses((*GOOD, *BAD, -1.0, -2.0), (-1.0,) * 6, (1, 1, -1, -1, 0, 0), group=[0] * 4 + [1] * 2)
    gain = value(Contrast(tau=None), live, batch)
    gain.backward()
    assert float(gain.detach()) == pytest.approx(0.35 / 2)
    assert (live.logp.grad[4:] == 0).all()


def test_a_bad_response_that_cannot_be_said_stays_finite() -> None:
    live, batch = responses((-0.5, -math.inf), (-1.0, -1.0), (1, -1))
    gain = value(Contrast(), live, batch)
    gain.backward()
    assert gain.isfinite()
    assert live.logp.grad.isfinite().all()


def test_what_the_contrast_reports() -> None:
    live, batch = responses((*GOOD, *BAD, -1.0, -2.0), (-1.0,) * 6, (1, 1, -1, -1, 0, 0), group=[0] * 4 + [1] * 2)
    found = Contrast(tau=0.1).measure(torch.zeros_like(live.logp), Live(live.logp.detach()), batch)
    assert found["contrast/margin"].value == pytest.approx(0.35)
    assert found["contrast/both"].value == 0.5
    assert found["contrast/hardest"].value == pytest.approx(0.880797, abs=1e-6)
    mean = Contrast(tau=None).measure(torch.zeros_like(live.logp), Live(live.logp.detach()), batch)
    assert mean["contrast/hardest"].value == pytest.approx(0.5)


# Classes


@given(seed=SEEDS, threshold=st.sampled_from([-0.5, 0.5, 1.5]))
def test_two_classes_are_the_formula(seed: int, threshold: float) -> None:
    batch = with_score(draw_batch(seed, graded=bool(seed % 2)))
    batch = batch.with_(keep=draw_keep(batch, seed))
    found, score, member = (
        TwoClasses(threshold=threshold)(batch),
        batch.columns["score"].tolist(),
        batch.keep.statistics,
    )
    for i in range(batch.size):
        same = [j for j in range(batch.size) if batch.group[j] == batch.group[i] and member[j]]
        classes = {score[j] > threshold for j in same}
        expected = (1.0 if score[i] > threshold else -1.0) if member[i] and len(classes) == 2 else 0.0
        assert found[i].tolist() == [expected if chosen else 0.0 for chosen in batch.mask[i].tolist()]


def test_without_a_threshold_only_zero_and_one_are_classes() -> None:
    batch = draw_batch(2)
    binary = batch.with_(columns={"score": batch.reward[:, 0]})
    assert torch.equal(TwoClasses(threshold=None)(binary), TwoClasses()(binary))
    with pytest.raises(
        ConfigError, match=r"recipe.advantage.threshold: the reward has values other than 0 and 1\. Say"
    ):
        TwoClasses(threshold=None)(batch.with_(columns={"score": 0.5 * batch.reward[:, 0] + 0.25}))


# Covariance

ADVANTAGE, CHANCE = (1.0, 1.0, -1.0, -1.0, 1.0), (0.9, 0.1, 0.8, 0.2, 0.5)
KAPPA = (0.705099, -1.052680, -0.916310, 0.747244, 0.234870)


def tokens(old: Sequence[float] | None = None) -> tuple[Live, Credited]:
    """Five tokens of known covariance; kappa does not depend on the old policy."""
    logp = [math.log(p) for p in CHANCE]
    return responses(logp, old or logp, ADVANTAGE)


def test_golden_of_the_covariance() -> None:
    live, batch = tokens()
    found = covariance(live, batch, batch.mask)[:, 0].tolist()
    assert [round(x, 6) for x in found] == list(KAPPA)
    assert found == pytest.approx(oracle.kappas(ADVANTAGE, [math.log(p) for p in CHANCE]), rel=1e-12)


def test_the_largest_take_their_ties_along() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 2.0, 5.0]], dtype=torch.float64)
    candidates = torch.tensor([[True, True, True, True, False]])
    assert largest(values, candidates, 1).tolist() == [[True, False, False, False, False]]
    assert largest(values, candidates, 2).tolist() == [[True, False, True, True, False]]
    assert largest(values, candidates, 9).tolist() == candidates.tolist()


def test_clipped_covariance_drops_what_the_noise_says() -> None:
    """Candidates are the tokens 0, 3 and 4; noise 0, .2, .4 says in which order they go."""
    for share, gone in ((0.2, {0}), (0.4, {0, 3}), (1.0, {0, 3, 4})):
        live, batch = tokens()
        batch = batch.with_(columns={"noise": torch.tensor([[0.1], [0.0], [0.0], [0.3], [0.9]]).double()})
        part = CovarianceClip(share=share, floor=0.2, ceiling=1.0)
        log_ratio = live.logp - batch.old_logp
        gain = part(log_ratio, live, batch)
        gain.sum().backward()
        assert {i for i in range(5) if live.logp.grad[i] == 0} == gone
        assert {i for i in range(5) if gain[i] == 0} == gone
        metrics = part.measure(log_ratio.detach(), Live(live.logp.detach()), batch)
        assert metrics["covariance/dropped"].value == pytest.approx(len(gone) / 5)
        assert metrics["covariance/mean"].value == pytest.approx(sum(KAPPA) / 5, abs=1e-6)


def test_tokens_that_the_clip_took_are_no_candidates() -> None:
    """Token 0 has a ratio far above 1: its gradient is gone already, and token 3 is dropped in its place."""
    live, batch = tokens(old=[math.log(p) - (2.0 if p == 0.9 else 0.0) for p in CHANCE])
    part = CovarianceClip(low=0.2, high=0.2, share=0.2, floor=0.2, ceiling=1.0)
    noise = torch.tensor([[0.1], [0.0], [0.0], [0.3], [0.9]]).double()
    gain = part(live.logp - batch.old_logp, live, batch.with_(columns={"noise": noise}))
    gain.sum().backward()
    assert {i for i in range(5) if live.logp.grad[i] == 0} == {0, 3}
    assert float(gain[0].detach()) == pytest.approx(1.2)


def test_without_candidates_it_is_the_clip() -> None:
    live, batch = tokens()
    log_ratio = live.logp - batch.old_logp + 0.1
    found = CovarianceClip(low=0.2, high=0.28)(log_ratio, live, batch)
    assert torch.equal(found, Clip(low=0.2, high=0.28)(log_ratio, live, batch))


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.surrogate.floor: 5.0 is not below ceiling=5.0"):
        CovarianceClip(floor=5.0)


def test_held_tokens_pay_for_their_distance() -> None:
    """The two largest are 3 and 0; 0.1 above and 0.2 below the old policy they lose |log rho|, with its slope."""
    old = [math.log(p) for p in CHANCE]
    old[0], old[3] = old[0] - 0.1, old[3] + 0.2
    live, batch = tokens(old)
    part = CovarianceKl(share=0.4, coef=2.0)
    log_ratio = live.logp - batch.old_logp
    gain = part(log_ratio, live, batch)
    gain.sum().backward()
    rho = [math.exp(x) for x in (0.1, 0.0, 0.0, -0.2, 0.0)]
    plain = [r * a for r, a in zip(rho, ADVANTAGE, strict=True)]
    assert gain[:, 0].tolist() == pytest.approx([plain[0] - 0.2, plain[1], plain[2], plain[3] - 0.4, plain[4]])
    slope = [plain[0] - 2.0, plain[1], plain[2], plain[3] + 2.0, plain[4]]
    assert live.logp.grad[:, 0].tolist() == pytest.approx(slope)
    metrics = part.measure(log_ratio.detach(), Live(live.logp.detach()), batch)
    assert metrics["covariance/held"].value == pytest.approx(0.4)
    assert metrics["covariance/moved"].value == pytest.approx(0.15)


def test_only_what_lowers_the_entropy_is_held() -> None:
    """At equal advantages no token covaries with anything, and none is picked in place of others."""
    logp = [math.log(p) for p in CHANCE]
    live, batch = responses(logp, [x - 0.3 for x in logp], (0.0,) * 5)
    gain = CovarianceKl(share=1.0)(live.logp - batch.old_logp, live, batch)
    gain.sum().backward()
    assert (live.logp.grad == 0).all()


@pytest.mark.parametrize("part", [CovarianceKl(share=0.3, coef=0.7), CovarianceClip(share=0.2, floor=0.1, ceiling=3.0)])
def test_gradients_of_covariance_surrogates(part: CovarianceKl | CovarianceClip) -> None:
    """The choice of tokens has no gradient: differences are taken of the gain, not of the choice."""
    for seed in range(3):
        live, batch = step(seed)
        chosen = Live(live.logp.detach())

        def gain(x: Tensor, batch: Credited = batch, chosen: Live = chosen, part: object = part) -> Tensor:
            return (batch.weight * part(torch.where(batch.mask, x - batch.old_logp, 0.0), chosen, batch)).sum()

        now = live.logp.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(gain(now), now)
        assert torch.allclose(found, differences(gain, live.logp.detach()), rtol=1e-5, atol=1e-8)


# Formulas


@pytest.mark.parametrize(
    "part", [Residual(), Contrast(), Contrast(tau=None, score="ratio"), TwoClasses(), CovarianceClip(), CovarianceKl()]
)
def test_formulas_speak_of_the_options(part: object) -> None:
    assert part.latex()
    assert part.latex().count("{") == part.latex().count("}")


def test_formulas_change_with_the_options() -> None:
    assert "0.1" in Residual().latex()
    assert r"\ell^{ref}" in Residual(anchor="reference").latex()
    assert r"\log" in Contrast().latex()
    assert r"\log" not in Contrast(tau=None).latex()
    assert r"\rho" in Contrast(score="ratio").latex()
    assert "0.002" in CovarianceKl().latex()


def test_what_they_need() -> None:
    assert not Residual.reads_ratio
    assert not Contrast.reads_ratio
    assert CovarianceClip.needs == ("noise",)
    assert Residual(anchor="reference").columns() == ("ref_logp",)
    assert Residual().columns() == ()
