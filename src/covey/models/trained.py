"""The card of a trained model (README.md of its folder): what it is from, how good it was measured to be, how to load it.

Nothing is written that is not known: a run's numbers come from its own files, and an absent licence is said to be absent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from covey.config.text import write
from covey.types import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known of a model.

    `name` is its folder's or repository's name, `base` the model that it was made from (empty: unknown) and `hub_base` whether
    that is a hub id; `rank` is that of an adapter folder; `changes` what an export did to the weights, in words; `run` the
    summary of the run (`observe.show.summary`), `config` its plain configuration and `step` after which the model stood;
    `versions` those of the libraries that trained it.
    """

    name: str
    form: Literal["model", "adapter"]
    base: str = ""
    hub_base: bool = False
    licence: str | None = None
    rank: int | None = None
    changes: str = ""
    run: Mapping[str, Any] | None = None
    config: Mapping[str, Any] | None = None
    recipe_digest: str = ""
    step: int | None = None
    versions: Mapping[str, str] | None = None


def write_trained_card(facts: Facts) -> str:
    """The Markdown text with its YAML head."""
    parts = [f"---\n{write(front_matter(facts)).strip()}\n---", f"# {facts.name}", _introduce(facts)]
    parts += [facts.changes] if facts.changes else []
    if facts.run is not None and facts.config is not None:
        parts += ["## How good it is", *_measure(facts.run, facts.config, facts.step)]
        parts += ["## How it was trained", *_explain(facts, facts.run, facts.config)]
    parts += ["## How to load it", *_load(facts)]
    parts += [_licence(facts)]
    return "\n\n".join(parts) + "\n"


def front_matter(facts: Facts) -> dict[str, Json]:
    """What the hub reads. A base that is no hub id is left out: the hub would look for it in vain."""
    adapter = facts.form == "adapter"
    head: dict[str, Json] = {}
    if facts.hub_base:
        head |= {"base_model": facts.base, "base_model_relation": "adapter" if adapter else "finetune"}
    recipe = [str(facts.run["recipe"])] if facts.run is not None else []
    head |= {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    head |= {
        "tags": ["covey", *(["reinforcement-learning"] if recipe else []), *recipe, *(["lora"] if adapter else [])]
    }
    head |= {"license": facts.licence or "unknown"}
    return head


def _introduce(facts: Facts) -> str:
    what = f"Low-rank adapters (rank {facts.rank})" if facts.form == "adapter" else "A causal language model"
    if facts.run is None:
        made = f", made from {_base(facts)}" if facts.base else ""
        return f"{what}{made}. The folder it was exported from says nothing of how it was trained."
    step = "" if facts.step is None else f", after step {facts.step} of {facts.run['steps']}"
    return (
        f"{what}, made from {_base(facts)} by reinforcement learning with covey: recipe `{facts.run['recipe']}` on the task "
        f"`{facts.run['task']}`{step}."
    )


def _base(facts: Facts) -> str:
    return f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.hub_base else f"`{facts.base}`"


def _measure(run: Mapping[str, Any], config: Mapping[str, Any], step: int | None) -> list[str]:
    """The table of accuracies before and at this model's step; a model that was not evaluated is said not to be."""
    found: Sequence[Mapping[str, Any]] = run["evaluations"]
    after = next((item for item in reversed(found) if item["step"] == step), None)
    if after is None:
        return ["It was not evaluated at this step."]
    before = next((item for item in found if item["step"] == 0 and item is not after), None)
    budget = config["budget"]
    limit = budget["eval_problems"]
    asked = (
        f"Accuracy on held-out problems that this training never showed ({'all' if limit is None else f'up to {limit}'} per set, "
        f"{budget['eval_samples']} samples each at temperature 1), with its 95 % interval over problems."
    )
    lines = ["| set | before | after | 95% interval |", "|---|---:|---:|---:|"]
    for name, now in after["sets"].items():
        was = (before or {"sets": {}})["sets"].get(name)
        lines.append(f"| {name} | {_share(was)} | {_share(now)} | {_span(now)} |")
    return [asked, "\n".join(lines)]


def _share(numbers: Mapping[str, Any] | None) -> str:
    return "" if numbers is None or numbers["accuracy"] is None else f"{numbers['accuracy']:.3f}"


def _span(numbers: Mapping[str, Any]) -> str:
    return "" if None in (numbers["low"], numbers["high"]) else f"{numbers['low']:.3f} to {numbers['high']:.3f}"


def _explain(facts: Facts, run: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    budget, model = config["budget"], config["model"]
    steps = run["steps_done"] if facts.step is None else facts.step
    prompts, samples = budget["prompts_per_step"], budget["samples_per_prompt"]
    lines = [
        f"- recipe: `{run['recipe']}`, digest `{facts.recipe_digest[:16]}`",
        f"- budget: {steps:,} steps of {prompts:,} prompts with {samples:,} responses each, at most "
        f"{budget['sampling']['max_tokens']:,} tokens long, at temperature {budget['sampling']['temperature']:g}",
        f"- optimizer: AdamW, learning rate {budget['optimizer']['lr']:g} ({budget['optimizer']['schedule']}), "
        f"seed {budget['seed']}",
        f"- weights: {_weights(model)}",
        f"- configuration: sha256 `{run['config_sha256']}`",
    ]
    if facts.versions:
        lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version in facts.versions.items()))
    told = {name: config[name] for name in ("recipe", "task", "reward", "budget") if config.get(name) is not None}
    return ["\n".join(lines), f"```yaml\n{write(told).strip()}\n```"]


def _weights(model: Mapping[str, Any]) -> str:
    lora = model.get("lora")
    if not lora:
        return f"all of them, in {model['dtype']}"
    rounded = f", kept in {model['quantize']}" if model.get("quantize") else ""
    return f"adapters of rank {lora['rank']} (alpha {lora['alpha']:g}) on a frozen base in {model['dtype']}{rounded}"


def _load(facts: Facts) -> list[str]:
    if facts.form == "model":
        transformers = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{facts.name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{facts.name}")'
        )
        vllm = f'from vllm import LLM\n\nllm = LLM("{facts.name}")'
        return [f"```python\n{transformers}\n```", f"```python\n{vllm}\n```"]
    peft = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("{facts.name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{facts.name}")'
    )
    vllm = (
        "from vllm import LLM\nfrom vllm.lora.request import LoRARequest\n\n"
        f'llm = LLM("{facts.base}", enable_lora=True, max_lora_rank={max(8, facts.rank or 8)})\n'
        f'llm.generate(prompts, lora_request=LoRARequest("{facts.name}", 1, "{facts.name}"))'
    )
    return [f"```python\n{peft}\n```", f"```python\n{vllm}\n```"]


def _licence(facts: Facts) -> str:
    if facts.licence is not None:
        return f"Licence: {facts.licence}."
    return "Licence: not stated. The base model's terms and those of the training data apply."
