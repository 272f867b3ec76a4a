"""The reward `reward_model`: a transformers sequence classifier reads prompt and response and says how good the response is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from covey.errors import ConfigError, CoveyError, MissingInputError, RefusedError
from covey.hub import quiet
from covey.registry import Component, component
from covey.rewards.failures import explain, fail, one_line
from covey.types import Prompt, Rollout, Score

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_ENDLESS = 10**9
"""Tokenizers without a limit say a number far beyond this."""


@component("reward", "reward_model")
class RewardModel(Component):
    """preference = scale * r + shift, with r what a sequence classifier says of the conversation that the response completes.

    With one label r is its logit. With several, `label` names the good one and r is its log-odds log(p / (1 - p)). With
    `output: probability` r is the sigmoid of that. The conversation is written with the reward model's own chat template, or,
    with `template: plain`, as the texts one after another. One that is longer than the model reads is a failure: a cut
    response is not the response. Weights are safetensors; no code comes with them. It runs in the trainer's process, and the
    value of a response does not depend on which others are scored with it.
    """

    path: str = Field(min_length=1, description="folder or hub id of a transformers sequence classification model")
    label: int | None = Field(default=None, ge=0, description="the label that means good; null: the model has only one")
    output: Literal["logit", "probability"] = Field(
        default="logit", description="log-odds, or probability, of the label"
    )
    scale: float = Field(default=1.0, description="factor of the value")
    shift: float = Field(default=0.0, description="added to the scaled value")
    template: Literal["chat", "plain"] = Field(
        default="chat", description="how the conversation is written: the tokenizer's chat template, or plain texts"
    )
    max_tokens: int | None = Field(
        default=None,
        ge=1,
        description="longest conversation; null: what the model says it can read",
        json_schema_extra={"unit": "tokens"},
    )
    batch: int = Field(
        default=8, ge=1, le=4096, description="responses of one forward", json_schema_extra={"unit": "rollouts"}
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        default="float32", description="number format of weights and arithmetic"
    )
    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where the model is")

    weights: ClassVar[Mapping[str, float]] = {"preference": 1.0}
    isolated: ClassVar[bool] = False

    def check(self, prompt: Prompt) -> None:
        """Raises a one-line error if the folder cannot serve, or no response to this prompt could be scored."""
        _check_folder(find_folder(self.path), self.path, self.label)
        _load_tokenizer(self.path, self.template)

    async def score(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score per response, in order."""
        judge = load_judge(self.path, self.dtype, self.device, self.template, self.label)
        longest = self.max_tokens or judge.longest
        scores: dict[int, Score] = {}
        rows: dict[int, list[int]] = {}
        for place, rollout in enumerate(rollouts):
            try:
                ids = judge.encode(prompt, rollout.text)
            except CoveyError:
                raise
            except Exception as error:  # a template or tokenizer may refuse a text
                scores[place] = fail(self.weights, explain(error))
                continue
            if len(ids) > longest:
                reason = f"too long: {len(ids)} tokens, the reward model reads {longest}"
                scores[place] = fail(self.weights, reason)
            else:
                rows[place] = ids
        for place, value in zip(rows, judge.values(list(rows.values()), self.batch), strict=True):
            scores[place] = self._score_one(value)
        return [scores[place] for place in range(len(rollouts))]

    def _score_one(self, logit: float) -> Score:
        if not math.isfinite(logit):
            return fail(self.weights, f"nonfinite: the reward model says {logit}")
        value = logit if self.output == "logit" else 0.5 * (1.0 + math.tanh(0.5 * logit))
        return Score({"preference": self.scale * value + self.shift})


@dataclass(frozen=True)
class Judge:
    """A sequence classifier with its tokenizer. `pad` is None where rows have to be read one at a time."""

    model: Any
    tokenizer: Any
    template: str
    label: int | None
    pad: int | None
    longest: int

    def encode(self, prompt: Prompt, text: str) -> list[int]:
        """The ids of prompt and response. Raises whatever template and tokenizer raise."""
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        if self.template == "plain":
            whole = "".join(message["content"] for message in messages) + text
            return list(self.tokenizer(whole, verbose=False)["input_ids"])
        messages.append({"role": "assistant", "content": text})
        whole = self.tokenizer.apply_chat_template(messages, tokenize=False)
        return list(self.tokenizer(whole, add_special_tokens=False, verbose=False)["input_ids"])

    def values(self, rows: Sequence[Sequence[int]], batch: int) -> list[float]:
        """The log-odds of each row, in order. Rows of similar length are read together, padded on the right."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        size = batch if self.pad is not None else 1
        found: dict[int, float] = {}
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            found.update(zip(chosen, self._forward([rows[place] for place in chosen]), strict=True))
        return [found[place] for place in range(len(rows))]

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        import torch

        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad or 0, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = torch.tensor(row, dtype=torch.long)
            mask[place, : len(row)] = 1
        device = self.model.device
        with torch.inference_mode():
            logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.double().cpu()
        if self.label is None:
            return [float(value) for value in logits[:, 0]]
        others = torch.cat([logits[:, : self.label], logits[:, self.label + 1 :]], dim=1)
        return [float(value) for value in logits[:, self.label] - others.logsumexp(1)]


@lru_cache(maxsize=2)
def load_judge(path: str, dtype: str, device: str, template: str, label: int | None) -> Judge:
    """The model of a folder or hub id, loaded once. Raises one-line errors for what is not there or cannot serve."""
    import torch
    import transformers
    from safetensors import SafetensorError

    folder, where = find_folder(path), f"reward model {path}"
    _check_folder(folder, path, label)
    tokenizer = _load_tokenizer(path, template)
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("reward.device", "there is no CUDA device", "Use cpu.")
    with quiet():
        try:
            model, report = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=getattr(torch, dtype), use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
            raise MissingInputError(
                where, f"it cannot be loaded ({one_line(str(error), 200)})", "Copy it again."
            ) from None
    if missing := sorted(report["missing_keys"]):
        right = "Give a sequence classification model; weights would be made up here."
        raise MissingInputError(where, f"its files hold no weight '{missing[0]}'", right)
    model = model.eval().to(device).requires_grad_(False)
    rows = int(model.get_input_embeddings().weight.shape[0])
    if (highest := max(tokenizer.get_vocab().values(), default=-1)) >= rows:
        found = f"the tokenizer has ids up to {highest}, the embedding has {rows} rows"
        raise ConfigError(where, found, "Give the tokenizer that belongs to the model.")
    config = model.config.get_text_config()
    pad = getattr(config, "pad_token_id", None)
    usable = isinstance(pad, int) and 0 <= pad < rows
    limits = (getattr(config, "max_position_embeddings", None), getattr(tokenizer, "model_max_length", None))
    longest = min((int(limit) for limit in limits if limit and 0 < limit < _ENDLESS), default=_ENDLESS)
    return Judge(model, tokenizer, template, label, pad if usable else None, longest)


def find_folder(path: str) -> Path:
    """A local folder, or a hub id's in the local cache, filled where the hub answers."""
    from covey.hub import hub_answers

    folder, where = Path(path).expanduser(), f"reward model {path}"
    if folder.is_dir():
        return folder
    if path.startswith((".", "~", "/")) or path.count("/") != 1 or folder.exists():
        raise MissingInputError(where, "there is no such folder", "Give a folder in hub format, or a hub id.")
    from huggingface_hub import snapshot_download

    for offline in (False, True) if hub_answers() else (True,):
        try:
            return Path(snapshot_download(path, allow_patterns=_FILES, local_files_only=offline))
        except (OSError, ValueError):  # not there, no access, no such id: the local cache may have it
            continue
    found = "it is no folder here, not in the local cache, and not to be had from the hub"
    raise MissingInputError(where, found, "Give a folder, or a hub id once while online.")


def _check_folder(folder: Path, path: str, label: int | None) -> None:
    """What can be known without loading weights: safetensors, an architecture that transformers has, the label."""
    import transformers

    where = f"reward model {path}"
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise MissingInputError(
            where, "the folder has no readable config.json", "Give a folder in hub format."
        ) from None
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        found = "its weights are pickled, which covey never opens" if pickled else "it has no weights"
        raise MissingInputError(where, found, "Give model.safetensors.")
    kind, known = raw.get("model_type"), transformers.models.auto.modeling_auto
    if kind not in known.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        if raw.get("auto_map"):
            right = "Give a model that transformers knows."
            raise RefusedError(where, "it needs code of its own (auto_map), which covey never runs", right)
        raise ConfigError(where, f"transformers has no sequence classifier for {kind!r}", "Give another model.")
    with quiet():
        count = int(transformers.AutoConfig.from_pretrained(folder).num_labels)
    if label is None and count != 1:
        raise ConfigError("reward.label", f"the model has {count} labels", f"Say which means good: 0 to {count - 1}.")
    if label is not None and (count == 1 or label >= count):
        right = "Leave it out." if count == 1 else f"Use 0 to {count - 1}."
        raise ConfigError("reward.label", f"there is no label {label} of {count} to choose", right)


@lru_cache(maxsize=2)
def _load_tokenizer(path: str, template: str) -> Any:
    import transformers

    where = f"reward model {path}"
    with quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(find_folder(path))
        except CoveyError:
            raise
        except Exception as error:  # tokenizers raise bare Exceptions
            found = f"its tokenizer cannot be loaded ({one_line(str(error), 200)})"
            raise MissingInputError(where, found, "The folder needs tokenizer.json.") from None
    if template == "chat" and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(where, "its tokenizer has no chat template", "Set reward.template=plain.")
    return tokenizer
