"""What a run is, as typed values: model + task + recipe + budget + engines. Every key has a description, a unit and a range."""

from __future__ import annotations

import hashlib
import json
import typing
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from covey import recipes
from covey import tasks as _tasks  # noqa: F401  (registers the tasks that ship)
from covey.config.text import write
from covey.errors import ConfigError, did_you_mean
from covey.observe.trackers import check as check_trackers
from covey.recipes import Recipe
from covey.recipes.rules import Shape, check_run
from covey.registry import Component, Value, build, plain
from covey.rewards.kinds import build_reward
from covey.tasks.mixture import sources_of
from covey.types import Sampling

DEFAULT_MODEL = "tiny"
DEFAULT_TASK = "compose"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$"
"""What a run may be called."""


def key(default: Any = ..., description: str = "", *, unit: str = "", **bounds: Any) -> Any:
    """A documented field: default, what it says, its unit and pydantic's bounds (ge, gt, le, lt, pattern ...)."""
    return Field(default, description=description, json_schema_extra={"unit": unit} if unit else None, **bounds)


class Section(Value):
    """A part of the configuration; true and false are not numbers here."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: Any, info: Any) -> Any:
        annotation = cls.model_fields[info.field_name].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise ValueError("Input should not be true or false")
        return value


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, always or perhaps; None for a field of any other type."""
    parts = [part for part in (typing.get_args(annotation) or (annotation,)) if part is not type(None)]
    only = parts[0] if len(parts) == 1 else None
    return only if isinstance(only, type) and issubclass(only, Section) else None


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) on a frozen base: W + alpha / rank * B A, with B zero at the start.

    There is no dropout: it would make the learner another policy than the sampler.
    """

    rank: int = key(16, "size of the adapters between their two matrices", unit="dimensions", ge=1, le=4096)
    alpha: float = key(32.0, "adapters are scaled by alpha / rank", gt=0)
    targets: tuple[str, ...] = key(
        ("all-linear",), "modules with an adapter, by the end of their names; all-linear: all"
    )

    @field_validator("targets", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class ModelConfig(Section):
    """The policy that is trained."""

    path: str = key(DEFAULT_MODEL, "embedded model by name, or folder or id of a transformers causal LM", min_length=1)
    dtype: Literal["float32", "bfloat16", "float64"] = key(
        "float32",
        "number format of weights and arithmetic; bfloat16 loses a step smaller than 1/256 of a weight",
    )
    lora: LoraConfig | None = key(None, "train adapters on a frozen model; null: train all weights")
    quantize: Literal["nf4", "int8"] | None = key(
        None, "number format in which the frozen model under adapters is kept; null: dtype"
    )
    system: str | None = key(None, "system prompt in front of every conversation that has none")
    chat_template_kwargs: Mapping[str, Any] = key(
        {}, "further variables of the chat template, e.g. {enable_thinking: false}"
    )
    thinking: tuple[str, str] | None = key(
        None, "tags around the model's thoughts, e.g. [<think>, </think>]: rewards see what follows the closing one"
    )

    @field_validator("thinking", mode="before")
    @classmethod
    def _tags_are_no_switch(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("Give two tags such as [<think>, </think>]; a switch is in model.chat_template_kwargs")
        return value

    @model_validator(mode="after")
    def _adapters_on_a_frozen_model(self) -> Self:
        if self.quantize is not None and self.lora is None:
            raise ConfigError("model.quantize", "rounded weights cannot be trained", "Add model.lora.rank=16.")
        return self


class SamplingConfig(Section):
    """How training rollouts are drawn. Nothing of it comes from the model's generation_config.json."""

    temperature: float = key(1.0, "divides the logits", gt=0, le=10)
    top_p: float = key(1.0, "smallest probability mass that tokens are drawn from; 1: all", gt=0, le=1)
    top_k: int = key(0, "draw from the k likeliest tokens only; 0: all", unit="tokens", ge=0)
    max_tokens: int = key(512, "longest response", unit="tokens", ge=1)
    stop: tuple[str, ...] = key((), "strings that end a response besides the model's stop tokens")

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def with_stop_ids(self, stop_ids: tuple[int, ...]) -> Sampling:
        """What the sampler is given, once the model's stop tokens are known."""
        return Sampling(self.temperature, self.top_p, self.top_k, self.max_tokens, stop_ids, self.stop)


class OptimizerConfig(Section):
    """AdamW and the schedule of its learning rate."""

    lr: float = key(1e-6, "peak learning rate", gt=0, le=10)
    schedule: Literal["constant", "linear", "cosine"] = key(
        "constant", "how the rate falls after the warm-up, to 0 at the end"
    )
    warmup_steps: int = key(0, "linear warm-up", unit="optimizer steps", ge=0)
    betas: tuple[float, float] = key((0.9, 0.999), "decay rates of the two moments, each in [0, 1)")
    eps: float = key(1e-8, "added to the root of the second moment", gt=0, le=1)
    weight_decay: float = key(0.0, "decoupled weight decay", ge=0, le=10)
    max_grad_norm: float | None = key(1.0, "longer gradients are scaled down to this norm; null: never", gt=0)

    @field_validator("betas")
    @classmethod
    def _in_range(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in value):
            raise ValueError("Each has to be in [0, 1)")
        return value


class BestConfig(Section):
    """Which evaluation was the best, and when to stop because no better one comes."""

    metric: str = key("eval/accuracy", "metric of an evaluation; its best checkpoint stays in best/", min_length=1)
    mode: Literal["max", "min"] = key("max", "whether a larger or a smaller value is better")
    patience: int | None = key(
        None, "stop after this many evaluations in a row without a better value; null: never", unit="evaluations", ge=1
    )
    min_change: float = key(0.0, "a value is better if it is so by more than this", ge=0)


class Budget(Section):
    """How much is done: steps, the four batch words, sampling, optimizer, seed, and how often to look and to save."""

    steps: int = key(100, "length of the run", unit="steps", ge=1)
    prompts_per_step: int = key(32, "groups per step", unit="prompts", ge=1)
    samples_per_prompt: int = key(8, "rollouts per group", unit="rollouts", ge=1)
    passes_per_batch: int = key(1, "times that a step's rollouts are learnt from", unit="passes", ge=1)
    optimizer_steps_per_pass: int = key(
        1, "optimizer steps per pass, each over whole groups", unit="optimizer steps", ge=1
    )
    sampling: SamplingConfig = key(SamplingConfig(), "how rollouts are drawn")
    optimizer: OptimizerConfig = key(OptimizerConfig(), "how weights move")
    seed: int = key(0, "the one seed: prompts, noise, everything follows from it", ge=0, lt=2**63)
    eval_every: int | None = key(
        None, "evaluate this often besides before and after; null: only then", unit="steps", ge=1
    )
    eval_samples: int = key(8, "samples per held-out problem", unit="rollouts", ge=1)
    eval_problems: int | None = key(200, "held-out problems per evaluation set; null: all", unit="problems", ge=1)
    checkpoint_every: int | None = key(50, "save this often besides at the end; null: only then", unit="steps", ge=1)
    checkpoint_keep: int = key(2, "newest checkpoints that stay", unit="checkpoints", ge=1)
    best: BestConfig | None = key(None, "keep the best model and perhaps stop early; null: neither")

    @model_validator(mode="after")
    def _patience_needs_evaluations(self) -> Self:
        if self.best is not None and self.best.patience is not None and self.eval_every is None:
            found = "without budget.eval_every there are no evaluations on the way to wait for"
            raise ConfigError("budget.best.patience", found, "Add budget.eval_every=10.")
        return self

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.optimizer_steps_per_pass > self.prompts_per_step:
            raise ConfigError(
                "budget.optimizer_steps_per_pass",
                f"{self.optimizer_steps_per_pass} steps of whole groups out of {self.prompts_per_step} prompts_per_step",
                f"Use 1 to {self.prompts_per_step}.",
            )
        if self.optimizer.schedule != "constant" and self.optimizer.warmup_steps >= self.optimizer_steps:
            raise ConfigError(
                "budget.optimizer.warmup_steps",
                f"{self.optimizer.warmup_steps} of {self.optimizer_steps} optimizer steps leave none for the schedule",
                "Warm up for fewer.",
            )
        return self

    @property
    def steps_per_batch(self) -> int:
        """Optimizer steps per rollout batch."""
        return self.passes_per_batch * self.optimizer_steps_per_pass

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps * self.steps_per_batch


class ServerConfig(Section):
    """An OpenAI-compatible server with `return_token_ids`, such as vLLM; its key is read from OPENAI_API_KEY."""

    url: str = key("http://127.0.0.1:8000/v1", "base URL, with /v1", pattern=r"^https?://[^\s/]+(/\S*)?$")
    model: str | None = key(None, "name of the model there; null: the only one that it serves")
    timeout_s: float = key(120.0, "longest wait for one answer", unit="s", gt=0)
    concurrency: int = key(64, "requests under way at a time", unit="requests", ge=1, le=4096)


class Engines(Section):
    """Where and how it runs. Nothing here changes what is learnt, up to rounding."""

    threads: int | Literal["auto"] = key(
        "auto", "CPU threads; auto: 1 for tiny models, else measured at the start", unit="threads"
    )
    tokens_per_slice: int = key(
        8192, "tokens of one forward and backward, a prompt once per group; at least one row", unit="tokens", ge=1
    )
    gradient_checkpointing: bool = key(False, "recompute activations in the backward: less memory, a third more time")
    sampler_rows: int = key(256, "rollouts that are generated side by side", unit="rollouts", ge=1)
    server: ServerConfig | None = key(None, "ask a server instead of a model in this process; only `covey eval` can")

    @field_validator("threads", mode="before")
    @classmethod
    def _count_or_auto(cls, value: Any) -> Any:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096):
            return value
        raise ConfigError("engines.threads", f"got {value!r}", "Give a number from 1 to 4096, or auto.")


class Scoring(Section):
    """The killable processes in which rewards run, and how much may fail."""

    workers: int = key(2, "processes that score side by side", unit="processes", ge=1, le=256)
    timeout_s: float = key(
        10.0,
        "longest time of one call, for a response or all those of a prompt; then the process is killed",
        unit="s",
        gt=0,
    )
    memory_mb: int = key(2048, "address space of a process beyond what it starts with", unit="MiB", ge=64)
    max_failed: float = key(
        0.5, "share of failed rollouts, over 3 steps, above which the run stops; None is no failure", ge=0, le=1
    )


class Report(Section):
    """What the console shows besides one line per step, and who else is told."""

    completions_every: int | None = key(20, "show a table of completions this often; null: never", unit="steps", ge=1)
    to: tuple[str, ...] = key((), "trackers that get all metrics: tensorboard, wandb, trackio, mlflow")
    project: str = key("covey", "project or experiment under which trackers file the run", min_length=1)

    @field_validator("to", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        names = tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        return tuple(dict.fromkeys(names)) if isinstance(names, (list, tuple)) else names


class RunConfig(Value):
    """Everything that a run is determined by; `write_yaml` and `RunConfig.of` are each other's inverse."""

    name: str = key(..., "name of the run; its folder is runs/NAME-N", pattern=NAME)
    recipe: Recipe = key(..., "what is maximised: a recipe's name, or edits of one")
    model: ModelConfig = key(ModelConfig(), "the policy")
    task: Component = key(..., "where prompts come from: a kind, or a kind with options")
    reward: Component | None = key(None, "takes the place of the task's own reward: a kind or FILE.py:function")
    budget: Budget = key(Budget(), "how much is done")
    engines: Engines = key(Engines(), "where it runs")
    scoring: Scoring = key(Scoring(), "where rewards run, and how much may fail")
    report: Report = key(Report(), "what the console shows")

    @model_validator(mode="before")
    @classmethod
    def _build(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        parts = dict(data)
        parts["recipe"] = as_recipe(parts.get("recipe", recipes.DEFAULT))
        parts["task"] = build("task", parts.get("task", DEFAULT_TASK), "task")
        if parts.get("reward") is not None:
            parts["reward"] = build_reward(parts["reward"], "reward")
            if "reward" in type(parts["task"]).model_fields:  # such a task checks its data for what the reward needs
                parts["task"] = parts["task"].model_copy(update={"reward": parts["reward"]})
            if hasattr(parts["task"], "rewarded"):
                parts["task"] = parts["task"].rewarded(parts["reward"])
        if isinstance(parts.get("model"), str):
            parts["model"] = {"path": parts["model"]}
        if parts.get("name") is None:
            parts["name"] = f"{parts['recipe'].name}-{parts['task'].kind}"
        return parts

    @model_validator(mode="after")
    def _refuse(self) -> Self:
        budget, sampling = self.budget, self.budget.sampling
        cut, steps = sampling.top_p < 1 or sampling.top_k > 0, budget.steps_per_batch
        check_run(self.recipe, Shape(budget.samples_per_prompt, optimizer_steps=steps, truncated_sampling=cut))
        return self

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> RunConfig:
        """A configuration from plain data (its dump, or part of it); a mistake is one line."""
        try:
            return cls(**data)
        except ValidationError as error:
            raise explain_value(error) from None

    def check_training(self) -> None:
        """Refuse what only an evaluation can use, then check the data: mistakes show before a model is loaded."""
        self.check_engines()
        self.check_data()

    def check_engines(self) -> None:
        """Refuse models and engines that an evaluation can use and no training can."""
        if self.engines.server is not None:
            found = "training gives its sampler new weights after every step, and a server takes none"
            raise ConfigError("engines.server", found, "Leave it out; `covey eval` can ask one.")
        if self.model.quantize is not None and self.recipe.own_critic is not None:
            found = "a separate critic is a copy of the model, and rounded weights are not copied"
            raise ConfigError("recipe.critic", found, "Use recipe.critic=shared, or no model.quantize.")

    def check_data(self) -> None:
        """Ask each source for its first prompt, the reward whether it can read it, and the trackers whether they can start.

        So mistakes show before a model is loaded.
        """
        task: Any = self.task
        prompts = [source.train(self.budget.seed, 0) for source in sources_of(task)]
        reward: Any = getattr(task, "reward", None) if self.reward is None else self.reward
        for prompt in prompts if hasattr(reward, "check") else ():
            reward.check(prompt)
        check_trackers(self.report.to)

    def plain(self) -> dict[str, Any]:
        """The configuration as plain data."""
        out: dict[str, Any] = plain(self)
        return out

    def write_yaml(self) -> str:
        """The fully resolved YAML that a run stores as run.yaml."""
        return write(self.plain())

    @property
    def digest(self) -> str:
        """sha256 of the plain data: equal digests mean equal configurations."""
        return hashlib.sha256(json.dumps(self.plain(), sort_keys=True).encode()).hexdigest()


def as_recipe(value: Any) -> Recipe:
    """A recipe from a value, a name, or a mapping: with the name of a known recipe it edits that one, else it is complete."""
    if isinstance(value, Recipe):
        return value
    if isinstance(value, str):
        return recipes.get(value)
    if not isinstance(value, Mapping):
        raise ConfigError("recipe", f"got {value!r:.40}", f"Give a name; {recipes.LISTED}")
    name = value.get("name", recipes.DEFAULT)
    if name in recipes.names():
        return recipes.get(name).but(**flatten(value))
    required = [field for field, info in Recipe.model_fields.items() if info.is_required() and field not in value]
    return recipes.get(name) if required else Recipe.of(value)


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested plain data. A mapping with `kind` is one value: a component, not edits of one."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping) and value and "kind" not in value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def explain_value(error: ValidationError) -> ConfigError:
    """The first problem of a validation as one line."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return ConfigError(place, "there is no such key", did_you_mean(str(first["loc"][-1]), RunConfig.model_fields))
    right = first["msg"].removeprefix("Value error, ") + "."
    expected = first.get("ctx", {}).get("expected")
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        right += " " + did_you_mean(first["input"], str(expected).replace("'", "").replace(" or ", ", ").split(", "))
    return ConfigError(place, f"got {first['input']!r:.60}", right.split(" Known:")[0])
