"""The table of estimators, by enumeration of a three-armed policy: what each is worth and what each pushes towards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from covey.batch import Keep, Live
from covey.stages.kl import estimate, k1, k2, k3, k3_straight_through
from covey.stages.mix import KlSum, TokenKl
from covey.stages.penalties import Kl
from tests.stages.data import as_credited, draw_batch

LOGITS = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)

REVERSE = (0.230323, -0.214500, -0.015823)
FORWARD = (0.212327, -0.249911, 0.037585)


def expected(name: str, *, logits: Tensor = LOGITS, old: Tensor | None = None) -> tuple[float, list[float]]:
    """Expectation under the sampling policy (the policy itself by default) of value and of gradient by the logits."""
    logits = logits.clone().requires_grad_()
    logp = logits.log_softmax(0)
    old_logp = (logits if old is None else old).detach().log_softmax(0)
    cost = estimate(name, logp - REFERENCE.log(), logp - old_logp)
    mean = (old_logp.exp() * cost).sum()
    (gradient,) = torch.autograd.grad(mean, logits)
    return float(mean.detach()), gradient.tolist()


def divergence(forward: bool, logits: Tensor = LOGITS) -> tuple[float, list[float]]:
    """KL(pi, ref), or KL(ref, pi), and its exact gradient."""
    logits = logits.clone().requires_grad_()
    logp, ref = logits.log_softmax(0), REFERENCE.log()
    value = (ref.exp() * (ref - logp)).sum() if forward else (logp.exp() * (logp - ref)).sum()
    (gradient,) = torch.autograd.grad(value, logits)
    return float(value.detach()), gradient.tolist()


def six(values: list[float] | tuple[float, ...]) -> tuple[float, ...]:
    """To six digits."""
    return tuple(round(value, 6) + 0.0 for value in values)


def test_both_divergences() -> None:
    assert round(divergence(forward=False)[0], 6) == 0.164905
    assert round(divergence(forward=True)[0], 6) == 0.166286
    assert six(divergence(forward=False)[1]) == REVERSE
    assert six(divergence(forward=True)[1]) == FORWARD


@pytest.mark.parametrize(
    ("name", "value", "gradient"),
    [
        ("k1", 0.164905, (0.0, 0.0, 0.0)),
        ("k2", 0.170284, REVERSE),
        ("k3", 0.164905, FORWARD),
        ("k3_straight_through", 0.164905, REVERSE),
        ("k3_importance", 0.164905, REVERSE),
    ],
)
def test_on_policy_table(name: str, value: float, gradient: tuple[float, ...]) -> None:
    found, pushed = expected(name)
    assert round(found, 6) == value
    assert six(pushed) == gradient


def test_only_the_importance_weighted_form_is_right_off_policy() -> None:
    old = LOGITS + torch.tensor([0.4, 0.0, -0.5], dtype=torch.float64)
    value, gradient = divergence(forward=False)
    found, pushed = expected("k3_importance", old=old)
    assert found == pytest.approx(value, abs=1e-12)
    assert pushed == pytest.approx(gradient, abs=1e-12)
    for name in ("k1", "k3"):
        assert abs(expected(name, old=old)[0] - value) > 1e-3


def test_a_detached_ratio_would_push_towards_the_forward_divergence() -> None:
    """Why the ratio of `k3_importance` carries gradient."""
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    ratio = (logp - logp.detach()).exp().detach()
    (gradient,) = torch.autograd.grad((logp.detach().exp() * ratio * k3(logp - REFERENCE.log())).sum(), logits)
    assert six(gradient.tolist()) == FORWARD


def test_values_of_the_estimators() -> None:
    x = torch.tensor([-2.0, -0.5, 0.0, 1e-9, 0.5, 2.0], dtype=torch.float64)
    assert torch.equal(k1(x), x)
    assert torch.equal(k2(x), x * x / 2)
    assert k3(x)[[0, 1, 2, 4, 5]].tolist() == pytest.approx([4.389056, 0.148721, 0.0, 0.106531, 1.135335], abs=1e-6)
    assert torch.equal(k3_straight_through(x), k2(x) + (k3(x) - k2(x)))
    assert (k3(x) >= 0).all()
    assert (k2(x) >= 0).all()


def test_importance_needs_its_ratio() -> None:
    with pytest.raises(ValueError, match="needs the log-ratio"):
        estimate("k3_importance", LOGITS)


# In the loss and in the reward, by the components themselves


def arms(logits: Tensor) -> tuple[Live, object, Tensor]:
    """One response of one token per arm, sampled by the policy; its live log-probabilities, and how probable each is."""
    base = draw_batch(0, groups=1, most=1, width=1).rows(torch.zeros(3, dtype=torch.long))
    logp = logits.log_softmax(0)
    own = logp.detach()[:, None]
    batch = base.with_(
        mask=torch.ones(3, 1, dtype=torch.bool),
        old_logp=own,
        sampled_logp=own,
        rollout=torch.arange(3),
        reward=torch.zeros(3, 1, dtype=torch.float64),
        reward_names=("nothing",),
        reward_weights=(1.0,),
        keep=Keep.all(3),
        columns={"ref_logp": REFERENCE.log()[:, None]},
    )
    return Live(logp[:, None]), as_credited(batch), logp.detach().exp()[:, None]


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("k1", (0.0, 0.0, 0.0)),
        ("k2", REVERSE),
        ("k3", FORWARD),
        ("k3_straight_through", REVERSE),
        ("k3_importance", REVERSE),
    ],
)
def test_in_the_loss(name: str, gradient: tuple[float, ...]) -> None:
    """The expected gradient of the penalty `kl` with this estimator."""
    logits = LOGITS.clone().requires_grad_()
    live, batch, chance = arms(logits)
    (found,) = torch.autograd.grad((chance * Kl(estimator=name)(live, batch)).sum(), logits)
    assert six(found.tolist()) == gradient


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        ("k1", REVERSE),
        ("k2", (0.037703, 0.017430, -0.055134)),
        ("k3", (0.017997, 0.035411, -0.053407)),
    ],
)
def test_in_the_reward(name: str, gradient: tuple[float, ...]) -> None:
    """The expected policy gradient of a score that is -KL: only k1 has that of the reverse divergence."""
    logits = LOGITS.clone().requires_grad_()
    live, batch, chance = arms(logits)
    score = TokenKl(coef=1.0, estimator=name)(batch)
    (found,) = torch.autograd.grad(-(chance * score * live.logp).sum(), logits)
    assert six(found.tolist()) == gradient


def test_summed_over_the_response_it_is_k1_in_the_reward() -> None:
    logits = LOGITS.clone().requires_grad_()
    live, batch, chance = arms(logits)
    score = KlSum(coef=1.0)(batch)[:, None]
    (found,) = torch.autograd.grad(-(chance * score * live.logp).sum(), logits)
    assert six(found.tolist()) == REVERSE


def test_to_the_old_policy_no_estimator_pulls_while_nothing_has_moved() -> None:
    """At the first optimizer step all log-ratios are 0: k1 sends noise of mean 0, the others nothing at all."""
    logits = LOGITS.clone().requires_grad_()
    live, batch, chance = arms(logits)
    for name in ("k2", "k3", "k3_straight_through", "k3_importance"):
        cost = Kl(estimator=name, to="old")(live, batch)
        (found,) = torch.autograd.grad((chance * cost).sum(), logits, retain_graph=True)
        assert found.abs().max() == 0
    (noise,) = torch.autograd.grad(Kl(estimator="k1", to="old")(live, batch)[0].sum(), logits)
    assert noise.abs().max() > 0.1
