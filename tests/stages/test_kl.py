"""The table of estimators, by enumeration of a three-armed policy: what each is worth and what each pushes towards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from covey.stages.kl import estimate, k1, k2, k3, k3_straight_through

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
