"""The packed scorer is transformers' own forward: values, gradients, and whatever the slices."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny_models import CONFIGS, make_model, make_rows
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from covey.batch import Batch
from covey.engines.attention import layers_of
from covey.engines.plain import plain_logits, plain_logp
from covey.engines.scorer import Scorer, verify
from covey.errors import ConfigError, DataError

RAGGED = {0: (5, [3, 17, 1]), 7: (21, [9, 4, 30, 2, 2, 11]), 3: (1, [6]), 4: (5, [12, 12])}


def relative(found: list[Tensor], expected: list[Tensor]) -> float:
    """Relative L2 distance of two lists of tensors."""
    distance = sum(((a - b) ** 2).sum() for a, b in zip(found, expected, strict=True))
    return float((distance / sum((b**2).sum() for b in expected)).sqrt())


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """Gradient of every parameter."""
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


def weights_for(rows: Batch) -> Tensor:
    """A fixed random coefficient per token."""
    return torch.randn(rows.tokens.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) * rows.mask


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_plain_forward_with_gradients(name: str) -> None:
    model = make_model(name, torch.float64)
    scorer, rows = Scorer(model), make_rows(RAGGED)
    weight = weights_for(rows)
    plain = plain_logp(model, rows, 0.7)
    expected = gradients(model, (weight * plain).sum())
    found = scorer(rows, temperature=0.7)["logp"]
    assert found.shape == rows.tokens.shape
    assert found.dtype == torch.float64
    assert found[~rows.mask].abs().max() == 0
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-12)
    assert relative(gradients(model, (weight * found).sum()), expected) <= 1e-12
    parts = [torch.tensor([0, 4, 6, 10, 2]), torch.tensor([11, 9, 1, 3, 5, 7, 8])]
    total = sum((weights_for(rows)[part] * scorer(rows.rows(part), temperature=0.7)["logp"]).sum() for part in parts)
    assert relative(gradients(model, total), expected) <= 1e-12


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_float32_stays_close(name: str) -> None:
    model = make_model(name)
    rows = make_rows(RAGGED)
    with torch.no_grad():
        difference = (Scorer(model)(rows)["logp"] - plain_logp(model, rows)).abs()
    assert difference.max() < 2e-5


def test_entropy_with_gradient() -> None:
    model = make_model("qwen3", torch.float64)
    rows = make_rows({0: (6, [5, 8]), 1: (3, [4])})
    entropies = []
    for row in range(rows.size):
        prompt = rows.prompts[int(rows.group[row])]
        logits = plain_logits(model, [*prompt, *rows.tokens[row].tolist()])[len(prompt) - 1 : -1] / 0.5
        entropies.append(torch.distributions.Categorical(logits=logits).entropy() * rows.mask[row])
    expected = torch.stack(entropies)
    weight = weights_for(rows)
    wanted = gradients(model, (weight * expected).sum())
    found = Scorer(model)(rows, outputs=("entropy",), temperature=0.5)
    torch.testing.assert_close(found["entropy"], expected, rtol=0, atol=1e-12)
    assert relative(gradients(model, (weight * found["entropy"]).sum()), wanted) <= 1e-12


def test_other_rows_and_their_order_change_nothing() -> None:
    model = make_model("gpt2", torch.float64)
    scorer, rows = Scorer(model), make_rows(RAGGED)
    order = torch.randperm(rows.size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole, shuffled = scorer(rows)["logp"], scorer(rows.rows(order))["logp"]
        alone = scorer(rows.rows(torch.tensor([5])))["logp"]
    torch.testing.assert_close(shuffled, whole[order], rtol=0, atol=1e-13)
    torch.testing.assert_close(alone[0], whole[5], rtol=0, atol=1e-13)


def test_linear_layers_see_real_tokens_once() -> None:
    model = make_model("llama")
    rows = make_rows({0: (30, [4, 4, 4, 4]), 1: (10, [9, 1])})
    seen: list[int] = []
    hook = model.model.layers[0].mlp.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    Scorer(model)(rows)
    hook.remove()
    assert seen == [30 + 4 * 3 + 10 + 8]


def test_nothing_to_predict_still_runs_every_parameter() -> None:
    model = make_model("llama", torch.float64)
    rows = make_rows({0: (3, [4, 2])})
    for empty in (rows.with_(mask=torch.zeros_like(rows.mask)), rows.rows(torch.tensor([], dtype=torch.long))):
        model.zero_grad()
        logp = Scorer(model)(empty)["logp"]
        assert logp.shape == empty.tokens.shape
        logp.sum().backward()
        assert all(p.grad is not None and p.grad.abs().max() == 0 for p in model.parameters())


def test_a_prompt_without_tokens_is_refused() -> None:
    model = make_model("llama")
    with pytest.raises(DataError, match="its prompt has no tokens"):
        Scorer(model)(make_rows({0: (0, [4])}))


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recomputed_layers_give_the_same_gradient_without_dropout(name: str, dtype: torch.dtype) -> None:
    """GPT-2 has dropout of 0.1 everywhere: any of it would show."""
    model, rows = make_model(name, dtype), make_rows({0: (6, [5, 8]), 1: (3, [4])})
    scorer = Scorer(model)
    scorer.train()
    assert not any(module.training for module in scorer.modules())
    expected = gradients(model, scorer(rows)["logp"].sum())
    for layer in scorer.layers():
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    assert len(scorer.layers()) == 2
    again = gradients(model, scorer(rows)["logp"].sum())
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_float64_layers_survive_a_deep_copy() -> None:
    import copy

    model, rows = make_model("qwen3", torch.float64), make_rows({0: (6, [5, 8])})
    scorer = Scorer(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        assert not torch.equal(Scorer(other)(rows)["logp"], scorer(rows)["logp"])
        torch.testing.assert_close(Scorer(other)(rows)["logp"], plain_logp(other, rows), rtol=0, atol=1e-12)
    assert layers_of(other)[0] is not layers_of(model)[0]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_canary_accepts(name: str, dtype: torch.dtype) -> None:
    assert verify(make_model(name, dtype)) <= (1e-4 if dtype == torch.float32 else 1e-9)


def test_canary_finds_what_the_head_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    own = model.lm_head.forward
    decoder = model.model.forward

    def louder(*args: object, **kwargs: object) -> object:
        out = decoder(*args, **kwargs)
        if "covey_layout" not in kwargs:
            out.last_hidden_state = out.last_hidden_state * 1.05
        return out

    monkeypatch.setattr(model.model, "forward", louder)
    with pytest.raises(ConfigError, match="packed scoring differs from transformers' own forward by"):
        verify(model)
    assert own is not None


def test_canary_finds_a_forgotten_soft_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("gemma2")
    monkeypatch.setattr("covey.engines.head.LogitHead.__call__", lambda self, hidden: self.head(hidden))
    model.config.final_logit_softcapping = 3.0
    with pytest.raises(ConfigError, match="differs from transformers' own forward"):
        verify(model)


@pytest.mark.parametrize(("key", "value"), [("logit_scale", 0.5), ("logits_scaling", 4.0)])
def test_scaled_logits(key: str, value: float) -> None:
    """Cohere multiplies, Granite divides."""
    from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

    shape = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    config = (CohereConfig if key == "logit_scale" else GraniteConfig)(**shape, **{key: value})
    model = (CohereForCausalLM if key == "logit_scale" else GraniteForCausalLM)(config)
    assert verify(model) < 1e-4


def test_a_plain_call_of_a_prepared_model_is_explained() -> None:
    model = make_model("llama")
    Scorer(model)
    with pytest.raises(ConfigError, match="LlamaAttention was called without covey's layout"):
        model(torch.tensor([[1, 2, 3]]))


def test_attention_with_sinks_is_refused() -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        pad_token_id=0,
    )
    with pytest.raises(ConfigError, match="passes 's_aux' to its attention"):
        verify(GptOssForCausalLM(config))
