"""Estimators of a Kullback-Leibler divergence from tokens that the policy sampled (Schulman 2020; arXiv 2510.01555).

With x = log pi(token) - log ref(token). What each gives in expectation, on-policy and per state:

| estimator           | value        | gradient when used as a loss             |
|---------------------|--------------|------------------------------------------|
| k1                  | KL(pi, ref)  | 0: no regularisation at all              |
| k2                  | close to it  | gradient of KL(pi, ref)                  |
| k3                  | KL(pi, ref)  | gradient of KL(ref, pi), the forward one |
| k3_straight_through | KL(pi, ref)  | gradient of KL(pi, ref)                  |
| k3_importance       | KL(pi, ref), also off-policy | gradient of KL(pi, ref)  |
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Estimator = Literal["k1", "k2", "k3", "k3_straight_through", "k3_importance"]


def k1(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """x: unbiased, may be negative, no gradient in expectation as a loss."""
    return x


def k2(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """x^2 / 2: its gradient is that of the reverse KL."""
    return x.square() / 2


def k3(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """exp(-x) - 1 + x: unbiased, never negative; its gradient is that of the forward KL."""
    return torch.expm1(-x) + x


def k3_straight_through(x: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The value of k3 with the gradient of k2."""
    return k2(x) + (k3(x) - k2(x)).detach()


def estimate(
    name: Estimator, x: Float[Tensor, "*S"], log_ratio: Float[Tensor, "*S"] | None = None
) -> Float[Tensor, "*S"]:
    """The named estimate of x; `k3_importance` multiplies k3 by exp(log_ratio), gradient through both factors."""
    if name == "k3_importance":
        if log_ratio is None:
            raise ValueError("k3_importance needs the log-ratio of the policy to the sampling policy")
        return log_ratio.exp() * k3(x)
    return {"k1": k1, "k2": k2, "k3": k3, "k3_straight_through": k3_straight_through}[name](x)
