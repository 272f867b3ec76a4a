"""Commands that meet a mistake, and models that are broken in known ways."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from covey.models import find_model

SMALL = (
    "budget.prompts_per_step=2 budget.samples_per_prompt=2 budget.eval_problems=2 budget.eval_samples=2 "
    "budget.sampling.max_tokens=16 engines.threads=1"
)
ROW = {"prompt": "1+1=", "answer": "2"}


@dataclass(frozen=True)
class Mistake:
    """A command that fails with `code` and one line that holds every one of `words`; `given` are the files it meets."""

    command: str
    code: int
    words: Sequence[str]
    given: Mapping[str, str | bytes] = field(default_factory=dict)
    damage: Callable[[Path], None] | None = None
    """What is done to `model/`, a copy of the embedded model, before."""


@dataclass(frozen=True)
class Fine:
    """What is no mistake here: the command works, and stdout holds `words`."""

    command: str
    words: Sequence[str] = ()
    given: Mapping[str, str | bytes] = field(default_factory=dict)
    damage: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Elsewhere:
    """Covered by a test of its own, `test_name` of the catalogue or `test_served.test_name`."""

    test: str


def rows(*values: Any) -> str:
    """A file of JSON lines."""
    return "".join(json.dumps(value) + "\n" for value in values)


def data(content: str | bytes) -> dict[str, str | bytes]:
    """The file that `ROWS` learns from."""
    return {"rows.jsonl": content}


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change entries of a JSON file of the model; None takes an entry away."""

    def damage(folder: Path) -> None:
        data = {**json.loads((folder / name).read_text()), **changes}
        (folder / name).write_text(json.dumps({key: value for key, value in data.items() if value is not None}))

    return damage


def together(*parts: Callable[[Path], None]) -> Callable[[Path], None]:
    """Several kinds of damage at once."""

    def damage(folder: Path) -> None:
        for part in parts:
            part(folder)

    return damage


def template(text: str | None) -> Callable[[Path], None]:
    """Another chat template, or none."""

    def damage(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        if text is not None:
            (folder / "chat_template.jinja").write_text(text)

    return damage


def truncate_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = load_file(folder / "model-00001-of-00002.safetensors")
    where = dict.fromkeys(names, "model-00001-of-00002.safetensors") | {
        "lm_head.weight": "model-00002-of-00002.safetensors"
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def lose_the_index(folder: Path) -> None:
    """A first shard without the index and without the second shard."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def grow_vocabulary(folder: Path) -> None:
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"]["é"] = 700
    (folder / "tokenizer.json").write_text(json.dumps(data))


def add_bos(folder: Path) -> None:
    """A tokenizer that puts a BOS in front, and a template that writes one too."""
    data = json.loads((folder / "tokenizer.json").read_text())
    bos = data["model"]["vocab"]["<|system|>"]
    piece = {"SpecialToken": {"id": "<|system|>", "type_id": 0}}
    data["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [piece, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [piece, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|system|>": {"id": "<|system|>", "ids": [bos], "tokens": ["<|system|>"]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(data))
    edit("tokenizer_config.json", bos_token="<|system|>", add_bos_token=True)(folder)
    template("{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")(folder)


def need_tokenizer_code(folder: Path) -> None:
    """A tokenizer that is nothing but code of its own, which says so when it runs."""
    (folder / "tokenizer.json").unlink()
    (folder / "mine.py").write_text("print('RAN')\n\n\nclass Mine:\n    pass\n")
    edit(
        "tokenizer_config.json", backend=None, tokenizer_class="Mine", auto_map={"AutoTokenizer": ["mine.Mine", None]}
    )(folder)


NO_EOS = together(
    edit("tokenizer_config.json", eos_token=None),
    edit("generation_config.json", eos_token_id=None),
    edit("config.json", eos_token_id=None),
)
ONE_STEP = f"train steps=1 {SMALL}"
ROWS = f"{ONE_STEP} data=rows.jsonl task.held_share=0"
ASK = "eval model --samples 1 budget.eval_problems=1 budget.sampling.max_tokens=4"


def lay_out(case: Mistake | Fine, folder: Path) -> None:
    """The files that a case needs."""
    for name, content in case.given.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    if re.search(r"\bmodel=model\b|eval model\b", case.command):
        shutil.copytree(find_model("tiny"), folder / "model")
        (folder / "model" / "covey.yaml").unlink()
    if case.damage is not None:
        case.damage(folder / "model")


def contents(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder, and the folders."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }
