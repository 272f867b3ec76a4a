"""The parts of a run, built from its configuration: model, task, engines over all ranks, collector, improver."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from covey.collect.grouped import GroupedCollector, Speech
from covey.collect.prompts import Prompts, visit_of
from covey.columns import Values, providers
from covey.engines.adapters import REFERENCE, Lora, add_reference, is_fresh
from covey.engines.chat import Chat
from covey.engines.cluster import Cluster
from covey.engines.critic import build_critic, build_policy
from covey.engines.learner import OptimizerOptions, SlicedScorer, TorchLearner, inner
from covey.engines.loading import LoadedModel, ModelOptions, load_model
from covey.engines.probe import choose_threads
from covey.engines.quantize import count_rounded
from covey.engines.reference import AdapterScorer, Follower, parameters_of
from covey.engines.sampler import HFSampler
from covey.engines.schedule import learning_rate
from covey.engines.scorer import Scorer, verify
from covey.engines.world import World
from covey.errors import ConfigError, DataError
from covey.gradient import GradientImprover, Schedule
from covey.protocols import Reward, Task
from covey.rewards.pool import Limits, isolate, pools
from covey.stages.objective import objective
from covey.tasks.mixture import sources_of
from covey.types import Prompt, Sampling

if TYPE_CHECKING:
    from covey.config import RunConfig


@dataclass(frozen=True, slots=True)
class Rewarded:
    """A task whose own reward is replaced."""

    task: Task
    reward: Reward

    @property
    def size(self) -> int | None:
        """The task's."""
        return self.task.size

    @property
    def main_set(self) -> str:
        """The task's."""
        return self.task.main_set

    @property
    def sources(self) -> tuple[Task, ...]:
        """The task's."""
        return sources_of(self.task)

    def visit(self, index: int) -> int:
        """The task's."""
        return visit_of(self.task, index)

    def train(self, seed: int, index: int) -> Prompt:
        """The task's."""
        return self.task.train(seed, index)

    def held_out(self, seed: int) -> Mapping[str, Sequence[Prompt]]:
        """The task's."""
        return self.task.held_out(seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a run is made of."""

    world: World
    loaded: LoadedModel
    task: Task
    speech: Speech
    sampling: Sampling
    sampler: HFSampler
    cluster: Cluster
    collector: GroupedCollector
    improver: GradientImprover
    threads: int
    parameters: int
    trained: int


def assemble(config: RunConfig, task: Task, world: World) -> Parts:
    """Build everything that computes, on every rank alike. Raises a one-line error for what cannot work."""
    loaded = load_policy(config)
    _check_trainable(config, loaded, world)
    threads = choose_threads(loaded.model, config.engines.threads)
    torch.set_num_threads(threads)
    verify(loaded.model, loaded.tokenizer)
    sampling = config.budget.sampling.with_stop_ids(loaded.stop_ids)
    speech = Speech(loaded.render, loaded.decode, loaded.think)
    _fits(task, config, loaded)
    numbers = [(value.numel(), value.requires_grad) for value in loaded.model.parameters()]
    parameters = sum(n for n, _ in numbers) + count_rounded(loaded.model)
    trained = sum(n for n, wanted in numbers if wanted)
    sampler = _sampler(config, loaded, world)
    cluster = _cluster(config, loaded, world, sampler)
    prompts = Prompts(task, config.budget.seed)
    collector = GroupedCollector(
        prompts,
        cluster.sample,
        task.reward,
        speech,
        samples=config.budget.samples_per_prompt,
        sampling=sampling,
        admit=config.recipe.admit,  # type: ignore[arg-type]
    )
    return Parts(
        world=world,
        loaded=loaded,
        task=task,
        speech=speech,
        sampling=sampling,
        sampler=sampler,
        cluster=cluster,
        collector=collector,
        improver=_improver(config, cluster, getattr(task.reward, "weights", {})),
        threads=threads,
        parameters=parameters,
        trained=trained,
    )


def load_policy(config: RunConfig) -> LoadedModel:
    """The model of a configuration with everything that `model` says of it: format, adapters, how it speaks."""
    model = config.model
    lora = (
        None
        if model.lora is None
        else Lora(**{name: getattr(model.lora, name) for name in ("rank", "alpha", "targets")})
    )
    chat = Chat(system=model.system, template_kwargs=model.chat_template_kwargs, thinking=model.thinking)
    options = ModelOptions(lora=lora, quantize=model.quantize, chat=chat, seed=config.budget.seed)
    return load_model(model.path, dtype=model.dtype, options=options)


def _check_trainable(config: RunConfig, loaded: LoadedModel, world: World) -> None:
    """Refuse to guess what is to be trained of a PEFT folder, and to shard weights that cannot be."""
    if loaded.adapted and config.model.lora is None:
        right = "Add model.lora.rank=... to go on training it, or merge it into its base first."
        raise ConfigError("model.path", f"{loaded.source} is an adapter", right)
    if config.model.quantize is not None and world.size > 1:
        raise ConfigError(
            "model.quantize", f"rounded weights cannot be sharded over {world.size} ranks", "Use one rank."
        )


def _sampler(config: RunConfig, loaded: LoadedModel, world: World) -> HFSampler:
    """Alone, the sampler shares the learner's weights; among many it keeps an unsharded copy that every publish refreshes."""
    model = loaded.model if world.size == 1 else copy.deepcopy(loaded.model)
    return HFSampler(model, tokenizer=loaded.tokenizer, max_rows=config.engines.sampler_rows)


def _cluster(config: RunConfig, loaded: LoadedModel, world: World, sampler: HFSampler) -> Cluster:
    """Learner and sampler and, where the recipe needs one, a frozen reference on every rank."""
    options = config.budget.optimizer
    copied, second = _critic_model(config, loaded), _second_model(config, loaded)
    learner = build_policy(
        config.recipe.critic,
        loaded.model,
        world=world,
        tokens_per_slice=config.engines.tokens_per_slice,
        gradient_checkpointing=config.engines.gradient_checkpointing,
        optimizer=OptimizerOptions(
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
            max_grad_norm=float("inf") if options.max_grad_norm is None else options.max_grad_norm,
        ),
    )
    reference = _reference(config, learner, second)
    return Cluster(
        world=world,
        learner=learner,
        sampler=sampler,
        objective=lambda live, batch, states: objective(config.recipe, live, batch, states),
        references={} if reference is None else {"reference": reference},
        follower=_follower(config.recipe.reference, learner, reference),
        critic=build_critic(config.recipe.critic, learner, copied),
    )


def _critic_model(config: RunConfig, loaded: LoadedModel) -> nn.Module | None:
    """What a critic apart from the policy starts from: a copy of the policy, before adapters of a reference are put into it."""
    return None if config.recipe.own_critic is None else copy.deepcopy(loaded.model)


def _second_model(config: RunConfig, loaded: LoadedModel) -> nn.Module | None:
    """What a reference needs besides the policy: a frozen copy of the model, or of its adapters; nothing for fresh adapters."""
    if "ref_logp" not in config.recipe.needs():
        return None
    if not loaded.adapted:
        return copy.deepcopy(loaded.model).requires_grad_(False)
    if config.recipe.reference.kind != "initial" or not is_fresh(loaded.model):
        add_reference(loaded.model)
    return None


def _reference(config: RunConfig, learner: TorchLearner, second: nn.Module | None) -> SlicedScorer | None:
    """The reference's forward: of the second model, or of the learner's own with another adapter or none."""
    if "ref_logp" not in config.recipe.needs():
        return None
    if second is not None:
        return SlicedScorer(Scorer(second), world=learner.world, tokens_per_slice=config.engines.tokens_per_slice)
    model = inner(learner.scorer)
    return AdapterScorer(learner, REFERENCE if REFERENCE in model.peft_config else None)  # type: ignore[operator]


def _follower(kind: Any, learner: TorchLearner, reference: SlicedScorer | None) -> Follower | None:
    """What moves a moving reference."""
    if reference is None or kind.kind == "initial":
        return None
    model, adapted = inner(reference.scorer), isinstance(reference, AdapterScorer)
    own = parameters_of(model, learner.parameters, adapted=adapted)
    return Follower(learner.parameters, own, every=kind.every, mix=kind.mix)


def _improver(config: RunConfig, cluster: Cluster, weights: Mapping[str, float]) -> GradientImprover:
    budget, options = config.budget, config.budget.optimizer

    def rate(step: int) -> float:
        return learning_rate(
            step,
            lr=options.lr,
            schedule=options.schedule,
            warmup_steps=options.warmup_steps,
            total_steps=budget.optimizer_steps,
        )

    schedule = Schedule(
        passes=budget.passes_per_batch,
        steps_per_pass=budget.optimizer_steps_per_pass,
        seed=budget.seed,
        temperature=budget.sampling.temperature,
        lr=rate,
    )
    values = Values(cluster, joint=config.recipe.joint_critic is not None)
    trained = {} if config.recipe.critic is None else {"value": values}
    columns = providers(config.recipe.needs(), cluster.forward, budget.sampling.temperature, trained)
    return GradientImprover(config.recipe, cluster, columns, schedule, weights)


def _fits(task: Task, config: RunConfig, loaded: LoadedModel) -> None:
    """Refuse prompts that leave no room in the model's context for a response: the first one, or the longest of a finite task."""
    prompts = _known_prompts(task, config.budget.seed)
    _check_columns(task.reward, prompts)
    prompt = max(prompts, key=_characters)
    context = getattr(loaded.model.config, "max_position_embeddings", None)
    tokens, response = _count_tokens(prompt, loaded, enough=context), config.budget.sampling.max_tokens
    if context is None:
        return
    if tokens >= context:
        found = f"it has {tokens} tokens or more, the model's context {context}"
        raise DataError(f"prompt {prompt.id}", found, "Shorten it or take it out.")
    if tokens + response > context:
        raise ConfigError(
            "budget.sampling.max_tokens",
            f"{response} response tokens after a prompt of {tokens} exceed the model's context of {context}",
            f"Use at most {context - tokens}.",
        )


def _count_tokens(prompt: Prompt, loaded: LoadedModel, *, enough: int | None) -> int:
    """The tokens of a prompt; of a text that has `enough` in any case only the fewest possible, as counting may take long."""
    fewest = 0 if enough is None else _characters(prompt) // max(map(len, loaded.tokenizer.get_vocab()))
    return fewest if enough is not None and fewest >= enough else len(loaded.render(prompt.messages))


def _known_prompts(task: Task, seed: int) -> list[Prompt]:
    """All prompts of a finite task, the first one of an endless one; of every source where a task has several."""
    if (sources := sources_of(task)) != (task,):
        return [prompt for source in sources for prompt in _known_prompts(source, seed)]
    if task.size is None:
        return [task.train(seed, 0)]
    held = [prompt for prompts in task.held_out(seed).values() for prompt in prompts]
    return [*(task.train(seed, at) for at in range(task.size)), *held]


def _check_columns(reward: Any, prompts: Sequence[Prompt]) -> None:
    """Ask the reward about one prompt of every set of columns, as the rows of a file need not have the same ones."""
    different = {(prompt.task, prompt.answer is None, *prompt.meta): prompt for prompt in reversed(prompts)}
    for prompt in different.values() if hasattr(reward, "check") else ():
        reward.check(prompt)


def _characters(prompt: Prompt) -> int:
    return sum(len(message.content) for message in prompt.messages)


@contextmanager
def isolated(task: Any, config: RunConfig) -> Iterator[Task]:
    """The task, its reward in processes of its own where it asks for them; they end with the context."""
    limits = config.scoring
    own = task.reward
    apart = isolate(own, Limits(workers=limits.workers, timeout_s=limits.timeout_s, memory_mb=limits.memory_mb))
    try:
        yield task if apart is own else Rewarded(task, apart)
    finally:
        for pool in pools(apart):
            pool.close()


def with_reward(task: Any, reward: Any) -> Task:
    """The task, with another reward if one is given."""
    return task if reward is None else Rewarded(task, reward)
