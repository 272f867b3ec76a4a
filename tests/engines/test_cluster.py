"""Many ranks do what one does, and a failure on any of them is one error on rank 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cluster_process import ACTS, make_cluster, read
from ranks import finish, start
from toy_learner import distance

from covey.engines.world import World
from covey.types import Request

SCRIPT = Path(__file__).with_name("cluster_process.py")
PAIRS = [("clipped", "row"), ("within_groups", "group"), ("coupled", "step")]
GRADIENTS = [
    {"act": "gradient", "objective": objective, "couples": couples, "dtype": dtype, "options": {"max_grad_norm": 1e9}}
    for objective, couples in PAIRS
    for dtype in ("float32", "float64")
]
TRAINS = [{"act": "train", "objective": o, "couples": c, "dtype": d} for o, c in PAIRS for d in ("float32", "float64")]
LOPSIDED = [
    {"act": "train", "groups": 1},  # one rank has nothing to do
    {"act": "train", "groups": 3, "budget": 12},  # the ranks have different numbers of slices
    {"act": "train", "groups": 1, "objective": "coupled", "couples": "step", "budget": 5},
    {"act": "train", "reload": True},
    {"act": "train", "objective": "within_groups", "couples": "group", "budget": 10},
]
REAL = [
    {"act": "train", "model": "qwen3", "dtype": "float32", "budget": 60},
    {
        "act": "train",
        "model": "qwen3",
        "dtype": "float64",
        "budget": 60,
        "options": {"checkpointing": True},
        "export": True,
    },
]
ASKS = [{"act": "ask", "requests": 7}, {"act": "ask", "requests": 1}]
SCENARIOS = [*GRADIENTS, *TRAINS, *LOPSIDED, *REAL, *ASKS]


def alone(scenario: dict[str, object]) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """The same scenario in this process."""
    tensors: dict[str, torch.Tensor] = {}
    record = ACTS[scenario["act"]](make_cluster(World(), scenario), {**scenario, "export": False}, tensors)
    return tensors, json.loads(json.dumps(record))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All scenarios on two ranks, in one pair of processes."""
    folder = tmp_path_factory.mktemp("two-ranks")
    ends = finish(start(SCRIPT, [json.dumps(SCENARIOS), str(folder)], size=2), timeout_s=150)
    assert [code for code, _ in ends] == [0, 0], ends
    assert (folder / "done-1").exists()
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize("at", range(len(GRADIENTS)))
def test_two_ranks_have_the_gradient_of_one(together: Path, at: int) -> None:
    found, _ = read(together, at)
    expected, _ = alone(SCENARIOS[at])
    assert distance(found, expected) <= (1e-6 if SCENARIOS[at]["dtype"] == "float32" else 1e-12)


def check_training(folder: Path, at: int, scenario: dict[str, object]) -> None:
    """Compare weights, optimizer, forwards and metrics after five steps with those of one process."""
    found, record = read(folder, at)
    expected, oracle = alone(scenario)
    tolerance = 1e-5 if scenario.get("dtype") == "float32" else 1e-12
    assert found.keys() == expected.keys()
    for kind in ("weight/", "optimizer/", "policy/", "reference/"):
        parts = ({n: t for n, t in tensors.items() if n.startswith(kind)} for tensors in (found, expected))
        assert distance(*parts) <= tolerance * (10 if kind in ("optimizer/", "policy/") else 1), kind
    for one, other in zip(record["metrics"], oracle["metrics"], strict=True):
        assert one == pytest.approx(other, rel=1e-4 if tolerance > 1e-6 else 1e-9)
    assert record["held"] <= 0.7 * oracle["held"]  # parameters really are sharded


@pytest.mark.distributed
@pytest.mark.parametrize("at", range(len(GRADIENTS), len(SCENARIOS) - len(ASKS)))
def test_two_ranks_reach_the_weights_of_one(together: Path, at: int) -> None:
    check_training(together, at, SCENARIOS[at])


@pytest.mark.distributed
def test_a_sharded_model_is_exported_whole(together: Path) -> None:
    from transformers import AutoModelForCausalLM

    weights, _ = read(together, SCENARIOS.index(REAL[1]))
    model = AutoModelForCausalLM.from_pretrained(together / "exported", dtype=torch.float64)
    exported = {f"weight/{name}": parameter.detach() for name, parameter in model.named_parameters()}
    assert distance(exported, {name: tensor for name, tensor in weights.items() if name.startswith("weight/")}) == 0


MORE = [
    {"act": "train", "model": "qwen3_moe", "budget": 40},
    {"act": "train", "model": "gpt2", "budget": 40, "options": {"checkpointing": True}, "reload": True},
    {"act": "train", "model": "gemma", "objective": "coupled", "couples": "step", "budget": 40},
]


@pytest.mark.slow
@pytest.mark.distributed
def test_three_ranks_train_other_architectures(tmp_path: Path) -> None:
    ends = finish(start(SCRIPT, [json.dumps(MORE), str(tmp_path)], size=3), timeout_s=150)
    assert [code for code, _ in ends] == [0, 0, 0], ends
    for at, scenario in enumerate(MORE):
        check_training(tmp_path, at, scenario)


@pytest.mark.distributed
@pytest.mark.parametrize("at", range(len(SCENARIOS) - len(ASKS), len(SCENARIOS)))
def test_samples_come_in_the_order_of_requests_and_the_work_is_shared(together: Path, at: int) -> None:
    """Signals that a terminal or launcher sends to every process did not end rank 1 in the middle of this."""
    found, record = read(together, at)
    expected, oracle = alone(SCENARIOS[at])
    assert record["samples"] == oracle["samples"]
    assert len(record["asked"]) in (SCENARIOS[at]["requests"] // 2, SCENARIOS[at]["requests"] // 2 + 1)
    assert distance(found, expected) == 0


def test_which_rank_samples_depends_on_ids_alone() -> None:
    from covey.engines.cluster import share_requests

    requests = [Request(f"prompt-{i}", (i,), (0,)) for i in range(10)]
    shares = share_requests(requests, 3)
    named = [{requests[at].id for at in share} for share in shares]
    backwards = [{requests[::-1][at].id for at in share} for share in share_requests(requests[::-1], 3)]
    assert named == backwards
    assert sorted(map(len, shares)) == [3, 3, 4]


def fail(folder: Path, scenario: dict[str, object], size: int = 2) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, rank 0's error (type and text), and what the processes printed."""
    ends = finish(start(SCRIPT, [json.dumps([scenario]), str(folder)], size=size), timeout_s=60)
    return [code for code, _ in ends], json.loads((folder / "0.error").read_text()), [output for _, output in ends]


def faulty(rank: int, kind: str) -> dict[str, object]:
    """A scenario whose objective fails on one rank."""
    return {"act": "train", "objective": "faulty", "states": {"fault": {"rank": rank, "kind": kind}}}


@pytest.mark.distributed
def test_a_user_error_on_rank_1_is_that_error_on_rank_0(tmp_path: Path) -> None:
    codes, error, printed = fail(tmp_path, faulty(1, "user"))
    assert codes == [2, 2]
    assert error == ["ConfigError", "rank 1: recipe.surrogate: found this. That would be right."]
    assert not any("Traceback" in text for text in printed)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_bug_on_the_last_of_three_ranks_keeps_its_traceback(tmp_path: Path) -> None:
    codes, (kind, text), _ = fail(tmp_path, faulty(2, "bug"), size=3)
    assert 0 not in codes
    assert kind == "RankError"
    assert text.startswith("rank 2 failed")
    assert "ValueError: a bug in an objective" in text


@pytest.mark.slow
@pytest.mark.distributed
def test_an_error_on_rank_0_ends_the_others(tmp_path: Path) -> None:
    codes, error, printed = fail(tmp_path, faulty(0, "user"))
    assert codes == [2, 1]
    assert error[0] == "ConfigError"
    assert "Traceback" not in printed[1]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_rank_that_is_killed_is_noticed(tmp_path: Path) -> None:
    codes, error, _ = fail(tmp_path, {"act": "die"})
    assert codes[0] == 1
    assert error[0] == "RankError"
    assert "ended without a word" in error[1]
