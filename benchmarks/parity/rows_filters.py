"""Disagreements about responses that are too long and groups that teach nothing."""

from __future__ import annotations

import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.rewards import get_soft_overlong_punishment
from verl.trainer.ppo import core_algos
from verl.workers.reward_manager.dapo import DAPORewardManager

from benchmarks.parity import openrlhf_peer, trl_peer
from benchmarks.parity.data import with_
from benchmarks.parity.disagreements import Row, figures, first, tiny
from covey import recipes


def soft_overlong() -> Row:
    """The punishment of long responses, beyond the limit too."""
    lengths = (70, 90, 100, 120)
    experience = SimpleNamespace(response_length=torch.tensor(lengths), rewards=torch.zeros(4))
    openrlhf_peer.PENALTY.apply_overlong_penalty([experience], 100, 20)
    cache = {"kind": "weighted_sum", "shaping": [{"kind": "soft_overlong", "cache_share": 0.2}]}
    case = with_(tiny(lengths), limit=100)
    part = recipes.get("grpo").but(mix=cache).mix.shaping[0]
    return Row(
        "D25",
        "soft overlong",
        "budget 100, the last 20 of it punished: responses of 70, 90, 100 and 120 tokens",
        (
            (
                "TRL get_soft_overlong_punishment",
                figures(get_soft_overlong_punishment(100, 20)([[1] * n for n in lengths])),
            ),
            ("verl DAPORewardManager", figures(verl_overlong(lengths))),
            ("OpenRLHF apply_overlong_penalty", figures(experience.rewards.double())),
            ("covey `soft_overlong`", figures(part(case.batch()))),
        ),
        "Between -factor and 0, as TRL and OpenRLHF; verl's line has no floor. A cache of 0 is a hard step in TRL "
        "and covey and refused by verl.",
    )


def verl_overlong(lengths: tuple[int, ...]) -> list[float]:
    """verl's reward manager on responses whose own reward is 0."""
    tokenizer = SimpleNamespace(decode=lambda *_, **__: "", eos_token="|")
    config = SimpleNamespace(enable=True, len=20, penalty_factor=1.0, log=False)
    manager = DAPORewardManager(tokenizer, 0, lambda **_: 0.0, "source", 100, config)
    out = []
    for length in lengths:
        tensors = {
            "prompts": torch.ones(1).long(),
            "responses": torch.ones(length).long(),
            "attention_mask": torch.ones(1 + length).long(),
        }
        item = SimpleNamespace(batch=tensors, non_tensor_batch={"reward_model": {"ground_truth": ""}, "source": "x"})
        data = _One(item, {"responses": torch.ones(1, length)})
        out.append(float(manager(data).sum()))
    return out


class _One(list):
    """A batch of one item with tensors of its own."""

    def __init__(self, item: SimpleNamespace, batch: dict[str, Tensor]) -> None:
        super().__init__([item])
        self.batch, self.meta_info, self.non_tensor_batch = batch, {}, {}


def overlong_filter() -> Row:
    """What is masked of a truncated response."""
    case = tiny((2, 2, 2, 2), reward=[[1.0], [0.0], [0.0], [0.0]])
    light = trl_peer.trainer(GRPOTrainer, case, logps=[case.old_logp], beta=0.0, mask_truncated_completions=True)
    prompts, responses, *rest = light._generate(None)
    light._generate = lambda _: (prompts, [[*responses[0][:-1], 3], *responses[1:]], *rest)  # the first one is cut off
    output = GRPOTrainer._generate_and_score_completions(light, [{"prompt": "?"}] * 4)
    keep = recipes.get("dapo").filters[0](with_(case, cut=torch.tensor([True, False, False, False])).batch())
    return Row(
        "D26",
        "truncated responses",
        "a group with rewards 1, 0, 0, 0 of which the first response was cut off",
        (
            ("TRL mask_truncated_completions: advantages of the others", figures(output["advantages"][1:])),
            ("TRL: tokens in the denominator, of 8", figures(output["num_items_in_batch"].item())),
            (
                "covey `overlong`, mode=mask: rows in loss, statistics, denominators",
                figures(float(part.sum()) for part in (keep.loss, keep.statistics, keep.denominator)),
            ),
        ),
        "The reward stays in the group's statistics in TRL and covey (mode=exclude takes it out). In covey the "
        "response stays in the denominator too; "
        "TRL's `dapo` takes its tokens out, and `dapo@trl` says so by `denominator=kept`. verl's recipe has no "
        "such filter.",
    )


def dynamic_sampling() -> Row:
    """When all rewards of a group are equal."""
    equal = [0.1] * 3
    mean, spread = sum(equal) / 3, max(equal) - min(equal)
    case = tiny((2,) * 6, reward=[[r] for r in (*equal, 1.0, 0.0, 0.0)], groups=2)
    return Row(
        "D27",
        "dynamic sampling",
        "a prompt with rewards 0.1, 0.1, 0.1",
        (
            ("verl's replay buffer (np.std == 0): groups that it evicts", figures(len(verl_evicted(equal)))),
            ("verl's replay buffer, rewards 1, 1, 1", figures(len(verl_evicted([1.0] * 3)))),
            (
                "TRL: no dynamic sampling; advantages of the group",
                figures(first(trl_peer.estimate(GRPOTrainer, case, beta=0.0))[:3]),
            ),
            ("covey `informative`: max - min", figures(spread)),
            ("their mean less 0.1, in units of 1e-17", figures((mean - 0.1) * 1e17, 2)),
        ),
        "`dapo` admits a group by max - min of the outcome, never by a std or a shaped reward; `dapo@trl` has no "
        "such stage.",
    )


def verl_evicted(values: list[float]) -> set[str]:
    """The groups that verl's replay buffer takes for uniform; its transport is a stand-in that hands over these rewards."""
    stand_in = ModuleType("transfer_queue")
    stand_in.KVBatchMeta = object
    stand_in.kv_batch_get = lambda **_: {"rm_scores": [torch.tensor([v], dtype=torch.float64) for v in values]}
    package = ModuleType("verl.trainer.ppo.v1")  # its start-up would load samplers
    package.__path__ = [str(Path(core_algos.__file__).parent / "v1")]
    sys.modules.update({"transfer_queue": stand_in, package.__name__: package})
    replay_buffer = import_module("verl.trainer.ppo.v1.replay_buffer")
    replay_buffer.tq = stand_in
    light = SimpleNamespace(
        finished_keys={"train": {"group"}},
        _dapo_classification_cache=defaultdict(dict),
        partitions={"train": [f"group_{i}" for i in range(len(values))]},
        filter_groups_metric=replay_buffer.FILTER_GROUPS_REWARD_METRIC,
    )
    cls = next(c for c in vars(replay_buffer).values() if isinstance(c, type) and hasattr(c, "_dapo_filtered_keys"))
    return cls._dapo_filtered_keys(light, "train")[0]


ROWS = (soft_overlong, overlong_filter, dynamic_sampling)
