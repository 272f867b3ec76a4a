"""The head gives logp and entropy with their gradients without ever holding all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from covey.engines import head
from covey.engines.head import score_tokens
from covey.errors import ConfigError

HIDDEN, VOCABULARY = 8, 50


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(item, Tensor):
                self.numel = max(self.numel, item.numel())
        return out


def setting(count: int) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=torch.float64))
    hidden = torch.randn(count, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    return linear, hidden, torch.randint(0, VOCABULARY, (count,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.25])
@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_values_and_gradients(monkeypatch: pytest.MonkeyPatch, temperature: float, chunk: int) -> None:
    linear, hidden, target = setting(33)
    logp = (linear(hidden) / temperature).log_softmax(-1)
    expected = logp.gather(-1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1)
    weights = torch.randn(2, 33, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    (weights[0] * expected[0] + weights[1] * expected[1]).sum().backward()
    gradients = hidden.grad.clone(), linear.weight.grad.clone()
    hidden.grad, linear.weight.grad = None, None
    monkeypatch.setattr(head, "LOGITS_PER_CHUNK", chunk * VOCABULARY)
    found = score_tokens(linear, hidden, target, vocabulary=VOCABULARY, temperature=temperature, outputs=("entropy",))
    assert list(found) == ["logp", "entropy"]
    torch.testing.assert_close((found["logp"], found["entropy"]), expected, rtol=1e-12, atol=1e-12)
    (weights[0] * found["logp"] + weights[1] * found["entropy"]).sum().backward()
    torch.testing.assert_close((hidden.grad, linear.weight.grad), gradients, rtol=1e-10, atol=1e-12)
    alone = score_tokens(linear, hidden, target, vocabulary=VOCABULARY, temperature=temperature)
    torch.testing.assert_close(alone["logp"], expected[0], rtol=1e-12, atol=1e-12)


def test_no_tensor_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, hidden, target = setting(400)
    monkeypatch.setattr(head, "LOGITS_PER_CHUNK", 20 * VOCABULARY)
    with Largest() as seen:
        found = score_tokens(linear, hidden, target, vocabulary=VOCABULARY, outputs=("entropy",))
        (found["logp"] + found["entropy"]).sum().backward()
    assert seen.numel == 400 * HIDDEN, "the hidden states are the largest tensor"
    assert seen.numel < 400 * VOCABULARY
    assert hidden.grad is not None


def test_the_detector_would_see_it() -> None:
    linear, hidden, target = setting(400)
    with Largest() as seen:
        score_tokens(linear, hidden, target, vocabulary=VOCABULARY)
    assert seen.numel == 400 * VOCABULARY


def test_impossible_tokens_add_nothing_to_entropy() -> None:
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    value = head.entropy(logits.log_softmax(-1))
    value.sum().backward()
    assert value.item() == pytest.approx(0.693147, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad[:, :2].isfinite().all()


def test_nothing_to_score() -> None:
    linear, hidden, target = setting(0)
    found = score_tokens(linear, hidden, target, vocabulary=VOCABULARY, outputs=("entropy",))
    assert found["logp"].shape == found["entropy"].shape == (0,)


def test_unknown_output_is_named() -> None:
    linear, hidden, target = setting(3)
    with pytest.raises(ConfigError, match=r"live output: there is no output 'entropi'\. Did you mean 'entropy'\?"):
        score_tokens(linear, hidden, target, vocabulary=VOCABULARY, outputs=("entropi",))
