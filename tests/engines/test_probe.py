"""The start-up probe tells the truth about batches and chooses threads."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_model

from covey.engines import probe
from covey.engines.choice import Choice
from covey.engines.probe import choose_threads, probe_batch
from covey.engines.sampler import HFSampler, Wave
from covey.errors import ConfigError


def test_exact_on_this_machine() -> None:
    finding = probe_batch(HFSampler(make_model("qwen3")))
    assert finding.exact
    assert finding.same_tokens
    assert str(finding) == "samples do not depend on their batch (bitwise, batch 1 and 16)"


class Leaky(HFSampler):
    """Its logits depend a little on how many rows there are."""

    def _choose(self, wave: Wave, logits: torch.Tensor, step: int) -> Choice:
        return super()._choose(wave, logits + 1e-5 * wave.count * torch.arange(logits.shape[1]), step)


def test_a_dependence_is_reported() -> None:
    finding = probe_batch(Leaky(make_model("qwen3")))
    assert not finding.exact
    assert 1e-5 < finding.largest_difference < 1e-1
    assert "depend on their batch up to near-ties" in str(finding)


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("qwen3")
    assert choose_threads(model) == choose_threads(model, "auto") == 1
    assert choose_threads(model, 3) == 3
    with pytest.raises(ConfigError, match=r"engines.threads: got 0\. At least 1"):
        choose_threads(model, 0)
    model.config.hidden_size = 2048
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    for seconds, threads in (({4: 1.0, 1: 3.0}, 4), ({4: 3.0, 1: 1.0}, 1), ({4: 0.95, 1: 1.0}, 1)):
        monkeypatch.setattr(probe, "_time_products", lambda _, count, seconds=seconds: seconds[count])
        assert choose_threads(model) == threads
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(probe, "_time_products", lambda _, count: {2: 1.0, 1: 3.0}[count])
    assert choose_threads(model) == 2


def test_timing_restores_the_threads() -> None:
    before = torch.get_num_threads()
    assert probe._time_products(64, 2) > 0
    assert torch.get_num_threads() == before
