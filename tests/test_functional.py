"""`covey.functional` gives what a run computes: for every registered recipe, on tensors that know nothing of rollouts."""

from __future__ import annotations

import inspect
import math
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from covey import functional, recipes
from covey.batch import Batch, Live
from covey.errors import ConfigError
from covey.models import find_model
from covey.proof.data import Policy, distance
from covey.recipes.recipe import Recipe
from covey.registry import State
from covey.stages.corrections import TruncatedImportance
from covey.stages.credit import credit, initial_states, weigh
from covey.stages.objective import objective, outputs
from covey.types import STOPS, Stop
from tests.stages.contract import BASE, case

NAMES = recipes.names()


def plain_case(recipe: Recipe, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Policy, Batch]:
    """A case with one row per rollout and weights of 1, as the functions know it; anything that a recipe may read is there."""
    policy, batch = case(recipe, seed, dtype)
    columns = {**batch.columns, "returns": batch.sampled_logp} if "value" in recipe.needs() else batch.columns
    return policy, batch.with_(
        rollout=torch.arange(batch.size), reward_weights=(1.0,) * len(batch.reward_names), columns=columns
    )


def given(batch: Batch) -> dict[str, Any]:
    """The columns as arguments."""
    columns = dict(batch.columns)
    return {"ref_logp": columns.pop("ref_logp", None), "columns": columns}


def from_tensors(recipe: Recipe, batch: Batch) -> Tensor:
    """The advantage by `covey.functional`."""
    return functional.advantage(
        recipe, reward=batch.reward, group=batch.group, mask=batch.mask, old_logp=batch.old_logp,
        truncated=batch.stop == STOPS.index(Stop.LENGTH), names=batch.reward_names, **given(batch),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_advantages_are_those_of_a_run(name: str) -> None:
    recipe = recipes.get(name)
    for seed in (1, 2):
        _, batch = plain_case(recipe, seed)
        batch = batch.with_(sampled_logp=batch.old_logp)
        credited, _, _ = credit(recipe, batch, initial_states(recipe))
        expected = torch.where(batch.keep.loss[:, None] & credited.keep.loss[:, None], credited.advantage, 0.0)
        found = from_tensors(recipe, batch)
        assert torch.equal(found, expected)
        assert bool((found[~batch.mask] == 0).all())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_gradient_are_those_of_a_run(name: str, dtype: torch.dtype) -> None:
    recipe = recipes.get(name)
    if recipe.filters:  # what a filter takes out of the loss is the caller's mask here
        recipe = recipe.but(filters=())
    policy, batch = plain_case(recipe, 3, dtype)
    credited, states, _ = credit(recipe, batch, initial_states(recipe))
    step = weigh(recipe, credited)
    live = policy.forward(step, outputs(recipe))
    expected, _ = objective(recipe, live, step, states)
    again = policy.forward(step, outputs(recipe))
    others = dict(again.outputs)
    found = functional.loss(
        recipe, logp=again.logp, old_logp=batch.old_logp, advantage=credited.advantage, mask=batch.mask, group=batch.group,
        sampled_logp=batch.sampled_logp, max_tokens=int(batch.limit[0]), entropy=others.pop("entropy", None), outputs=others,
        **{**given(batch), "columns": {**given(batch)["columns"], **_made(credited.columns)}},
    )  # fmt: skip
    assert found.dtype == dtype
    assert found.shape == ()
    assert torch.equal(found, expected.to(dtype))
    assert distance(policy.gradient(found), policy.gradient(expected.to(dtype))) <= 1e-15


def _made(columns: Any) -> dict[str, Tensor]:
    return {name: columns[name] for name in ("returns", "value") if name in columns}


def simple() -> dict[str, Tensor]:
    """Two prompts with two responses each."""
    draw = torch.Generator().manual_seed(0)
    logp = -torch.rand(4, 3, generator=draw)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    return {"logp": logp.requires_grad_(), "old_logp": logp.detach() - 0.05, "mask": mask, "advantage": torch.ones(4)}


def test_a_loss_by_hand() -> None:
    """Clip at 1.2 with ratio e^0.1: gain 1.1052 on 9 tokens, over 4 responses of at most 3 tokens."""
    tensors = simple() | {"old_logp": simple()["logp"].detach() - 0.1}
    assert float(functional.loss("dr_grpo", **tensors).detach()) == pytest.approx(-9 * math.exp(0.1) / 12, rel=1e-6)
    wide = functional.loss("dr_grpo", **tensors, max_tokens=6)
    assert float(wide.detach()) == pytest.approx(-9 * math.exp(0.1) / 24, rel=1e-6)


def test_advantages_by_hand() -> None:
    mask, group = simple()["mask"], torch.tensor([7, 7, 3, 3])
    found = functional.advantage("dr_grpo", reward=torch.tensor([1.0, 0.0, 1.0, 1.0]), group=group, mask=mask)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.5, 0.5, 0], [-0.5, -0.5, -0.5], [0, 0, 0], [0, 0, 0]]
    parts = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    twice = functional.advantage("dr_grpo", reward=parts, group=group, mask=mask)
    assert twice[0].tolist() == [1, 1, 0]


def test_an_infinite_reward_is_none() -> None:
    """As in a run, where it is a failure: it would leave no number in its group."""
    rewards, mask = torch.tensor([1.0, 0.0, math.inf]), torch.ones(3, 2, dtype=torch.bool)
    found = functional.advantage("dr_grpo", reward=rewards, group=torch.zeros(3, dtype=torch.long), mask=mask)
    assert found.tolist() == [[0.5, 0.5], [-0.5, -0.5], [0.0, 0.0]]


def test_nothing_is_refused() -> None:
    """What a run refuses is computed: groups of one, a stale policy gradient, presets with waivers."""
    tensors = simple()
    alone = functional.advantage("grpo", reward=torch.rand(4), group=torch.arange(4), mask=tensors["mask"])
    assert bool((alone == 0).all())
    for name in NAMES:
        recipe = recipes.get(name)
        others = dict.fromkeys(outputs(recipe), tensors["logp"] * 0.5)
        columns = dict.fromkeys(("noise", "value", "returns"), tensors["old_logp"])
        entropy = others.pop("entropy", None)
        found = functional.loss(
            recipe, **tensors, ref_logp=tensors["old_logp"], entropy=entropy, outputs=others, columns=columns
        )
        assert bool(found.isfinite())


@pytest.mark.parametrize("name", NAMES)
def test_a_token_that_the_sampler_could_not_measure_leaves_the_mask(name: str) -> None:
    recipe = recipes.get(name)
    policy, batch = plain_case(recipe, 3)
    row, token = (int(index[0]) for index in torch.nonzero(batch.mask, as_tuple=True))
    mask = batch.mask.clone()
    mask[row, token] = False
    advantage = (
        torch.where(batch.mask, 1.0, 0.0).double() * torch.tensor([(-1.0) ** n for n in range(batch.size)])[:, None]
    )
    for blank in ("old_logp", "sampled_logp"):
        found, gradients = [], []
        for shown, value in ((batch.mask, -math.inf), (mask, 0.0)):
            logp = {"old_logp": batch.old_logp.clone(), "sampled_logp": batch.sampled_logp.clone()}
            logp[blank][row, token] = value
            live = policy.forward(batch, outputs(recipe))
            others = dict(live.outputs)
            loss = functional.loss(
                recipe, logp=live.logp, advantage=advantage, mask=shown, group=batch.group, entropy=others.pop("entropy", None),
                outputs=others, **logp, **given(batch),
            )  # fmt: skip
            found.append(float(loss.detach()))
            gradients.append(policy.gradient(loss))
        assert found[0] == pytest.approx(found[1], rel=1e-12)
        assert distance(gradients[0], gradients[1]) <= 1e-12


class Counted(TruncatedImportance):
    """A correction with state."""

    def initial(self) -> State:
        return {"seen": 0}

    def __call__(self, batch: Batch, state: State | None = None) -> Any:
        return super().__call__(batch), {"seen": (state or self.initial())["seen"] + 1}


def test_a_correction_with_state_is_as_at_its_first_step() -> None:
    dapo, tensors = recipes.get("dapo"), simple()
    plain = {name: getattr(dapo, name) for name in type(dapo).model_fields}
    tensors["sampled_logp"] = tensors["old_logp"] - 0.1
    losses = [
        functional.loss(Recipe(**{**plain, "corrections": (part,)}), **tensors)
        for part in (TruncatedImportance(), Counted())
    ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], functional.loss(dapo, **tensors))


def test_garbage_outside_the_mask_is_not_read() -> None:
    tensors = simple()
    mask = tensors["mask"]
    expected = functional.loss("grpo", **tensors, ref_logp=tensors["old_logp"])
    dirty = {
        name: value if name in ("mask", "advantage") else torch.where(mask, value.detach(), math.nan)
        for name, value in tensors.items()
    }
    dirty["logp"].requires_grad_()
    found = functional.loss("grpo", **dirty, ref_logp=dirty["old_logp"])
    assert torch.equal(found, expected)
    found.backward()
    assert bool(dirty["logp"].grad.isfinite().all())


def test_a_missing_tensor_is_named() -> None:
    line = (
        r"covey.functional.loss: recipe 'grpo' reads 'ref_logp', which was not given. Give the tensor, or a recipe that"
    )
    with pytest.raises(ConfigError, match=line):
        functional.loss("grpo", **simple())
    with pytest.raises(ConfigError, match=r"covey.functional.advantage: recipe 'ppo' reads"):
        functional.advantage("ppo", reward=torch.rand(4), group=torch.arange(4), mask=simple()["mask"])
    with pytest.raises(ConfigError, match=r"there is no recipe 'gropo'"):
        functional.loss("gropo", **simple())


def test_a_wrong_shape_is_found() -> None:
    with pytest.raises(Exception, match=r"(?s)old_logp"):
        functional.loss("dr_grpo", **{**simple(), "old_logp": torch.zeros(4, 2)})


def test_the_same_twice() -> None:
    recipe = BASE.but(advantage={"kind": "batch_baseline", "baseline": "moving"})
    reward, mask = torch.rand(4), simple()["mask"]
    first, second = (functional.advantage(recipe, reward=reward, group=torch.zeros(4).long(), mask=mask) for _ in "ab")
    assert torch.equal(first, second)


FACTORIES = (torch.ones, torch.zeros, torch.full, torch.tensor, torch.arange, torch.empty, torch.linspace, torch.eye)


class Placed(TorchFunctionMode):
    """Finds tensors of one dimension or more that are made without saying where: on a GPU they would be in the wrong place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in FACTORIES and "device" not in (kwargs or {}) and made.dim():
            frame = next(f for f in reversed(traceback.extract_stack()[:-1]) if "covey" in f.filename)
            self.found.add(f"{frame.filename}:{frame.lineno}: {frame.line}")
        return made


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_makes_its_tensors_where_its_inputs_are(name: str) -> None:
    recipe = recipes.get(name)
    policy, batch = plain_case(recipe, 3)
    credited, states, _ = credit(recipe, batch, initial_states(recipe))
    step = weigh(recipe, credited)
    live = policy.forward(step, outputs(recipe))
    with Placed() as placed:
        objective(recipe, Live(live.logp, live.outputs), step, states)
    assert placed.found == set()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_the_same_on_a_gpu(name: str) -> None:
    recipe, tensors = recipes.get(name), simple()
    tensors |= {"ref_logp": tensors["old_logp"], "group": torch.tensor([0, 0, 1, 1])}
    others = dict.fromkeys(outputs(recipe), tensors["logp"] * 0.5)
    more = {"entropy": others.pop("entropy", None), "outputs": others}
    columns = dict.fromkeys(("noise", "value", "returns"), tensors["old_logp"])
    expected = functional.loss(recipe, **tensors, **more, columns=columns)
    moved = {key: value.detach().cuda() for key, value in tensors.items()}
    more = {
        "entropy": None if more["entropy"] is None else more["entropy"].cuda(),
        "outputs": {key: value.cuda() for key, value in others.items()},
    }
    found = functional.loss(recipe, **moved, **more, columns={key: value.cuda() for key, value in columns.items()})
    assert found.is_cuda
    assert float(found) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_a_mask_of_numbers_is_one_of_truths(kind: torch.dtype) -> None:
    tensors = simple()
    expected = functional.loss("gspo", **tensors)
    assert functional.loss("gspo", **{**tensors, "mask": tensors["mask"].to(kind)}) == expected
    given = {"reward": tensors["old_logp"][:, 0], "group": torch.zeros(len(tensors["mask"])).long()}
    credits = [functional.advantage("gspo", **given, mask=tensors["mask"].to(dtype)) for dtype in (torch.bool, kind)]
    assert torch.equal(*credits)


@pytest.mark.parametrize("name", ["logp", "old_logp", "mask"])
def test_a_tensor_that_would_be_broadcast_is_named(name: str) -> None:
    tensors = simple()
    with pytest.raises(ConfigError, match=r"has the shape \[\d+, \d+\]. As `mask` is it has to be \[\d+, \d+\]"):
        inspect.unwrap(functional.loss)(
            "gspo", **{**tensors, name: tensors[name][:, :1]}
        )  # as it is without a checker of types


def test_a_reward_of_other_rows_is_named() -> None:
    mask = simple()["mask"]
    advantage = inspect.unwrap(functional.advantage)
    with pytest.raises(ConfigError, match="'group' has the shape"):
        advantage("gspo", reward=torch.ones(len(mask)), group=torch.zeros(1).long(), mask=mask)
    with pytest.raises(ConfigError, match="'reward' has the shape"):
        advantage("gdpo", reward=torch.ones(1, 2), group=torch.zeros(len(mask)).long(), mask=mask)


def test_the_lines_for_trl_run_inside_trl(tmp_path: Any) -> None:
    """Where TRL is installed the page's trainer takes two steps on the embedded model."""
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    page = Path(__file__).parent.parent / "docs" / "functional.md"
    (code,) = re.findall(r"^```py\n(.*?)^```", page.read_text(), re.M | re.S)
    words: dict[str, Any] = {}
    exec(code, words)
    rows = datasets.Dataset.from_dict({"prompt": ["1+1=", "2+2=", "3+1=", "4+4="] * 4})
    options = {
        "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 8, "max_steps": 2, "use_cpu": True,
        "report_to": [], "logging_steps": 1, "save_strategy": "no", "bf16": False,
    }  # fmt: skip
    trainer = words["CoveyTrainer"](
        model=str(find_model("tiny")),
        reward_funcs=lambda completions, **_: [float(len(text) % 3) for text in completions],
        args=trl.GRPOConfig(output_dir=str(tmp_path), **options),
        train_dataset=rows,
    )
    trainer.train()
    assert all(entry["grad_norm"] > 0 for entry in trainer.state.log_history if "loss" in entry)
