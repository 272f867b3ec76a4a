"""Exports: what the folder holds, that it is there whole or not at all, its card, and a hub that takes or refuses it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from covey import export as exporting
from covey.engines.adapters import Lora, trained_tensors
from covey.engines.loading import ModelOptions, load_model
from covey.engines.peft_folder import write_adapter
from covey.engines.plain import plain_logits
from covey.errors import ConfigError, MissingInputError, OutputError, ServerError, StorageError
from covey.export import export, is_hub_id
from covey.models.trained import Facts, front_matter, write_trained_card
from covey.start import train
from covey.target import Target, find_target, portable

torch.set_num_threads(1)
pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {
    "steps": 2,
    "budget.prompts_per_step": 2,
    "budget.samples_per_prompt": 2,
    "budget.eval_problems": 2,
    "budget.eval_samples": 2,
    "budget.checkpoint_every": 1,
    "budget.sampling.max_tokens": 24,
    "budget.best.metric": "eval/length",
    "budget.best.mode": "min",
    "engines.threads": 1,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "full"
    train(model="tiny", out=folder, **SMALL)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder whose adapter does something."""
    folder = tmp_path_factory.mktemp("adapter") / "model"
    loaded = load_model("tiny", options=ModelOptions(lora=Lora(rank=4)))
    torch.manual_seed(0)
    weights = {name: torch.randn_like(value) * 0.1 for name, value in trained_tensors(loaded.model).items()}
    write_adapter(folder, model=loaded.model, tokenizer=loaded.tokenizer, weights=weights, base=loaded.base)
    return folder


def head(folder: Path) -> dict[str, Any]:
    """The YAML head of a card, read as the hub's library does."""
    text = (folder / "README.md").read_text()
    card: dict[str, Any] = ModelCard(text).data.to_dict()
    assert card == yaml.safe_load(text.split("---\n")[1])
    return card


def test_a_run_s_model_is_copied_byte_for_byte_with_a_card(run: Path, tmp_path: Path) -> None:
    made = export(find_target(str(run)), tmp_path / "out")
    assert (made.form, made.base) == ("model", "tiny")
    for path in (run / "model").iterdir():
        if path.name != "manifest.json":
            assert (made.folder / path.name).read_bytes() == path.read_bytes()
    card = (made.folder / "README.md").read_text()
    assert head(made.folder)["tags"] == ["covey", "reinforcement-learning", "dr_grpo"]
    assert "base_model" not in head(made.folder)  # the embedded model is none of the hub's
    assert head(made.folder)["license"] == "unknown"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "eval/accuracy_L1" in row][-1]
    assert f"| {last['eval/accuracy_L1']:.3f} | {last['eval/low_L1']:.3f} to {last['eval/high_L1']:.3f} |" in card
    assert "after step 2 of 2" in card


def test_a_checkpoint_and_the_best_model_can_be_chosen(run: Path, tmp_path: Path) -> None:
    first = export(find_target(str(run), step=1), tmp_path / "first").folder
    stored = load_file(run / "checkpoints" / "step-000001" / "model" / "model.safetensors")
    assert all(torch.equal(stored[name], value) for name, value in load_file(first / "model.safetensors").items())
    assert "It was not evaluated at this step." in (first / "README.md").read_text()
    best = find_target(str(run), best=True)
    assert best.step == json.loads((run / "best" / "best.json").read_text())["step"]
    export(best, tmp_path / "best")
    with pytest.raises(MissingInputError, match=r"keeps no checkpoint of step 7. It keeps 1, 2"):
        find_target(str(run), step=7)
    with pytest.raises(ConfigError, match="tiny is no run"):
        find_target("tiny", best=True)
    with pytest.raises(ConfigError, match="beside --step"):
        find_target(str(run), best=True, step=1)


def test_a_damaged_checkpoint_is_not_exported(run: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    weights = tmp_path / "run" / "checkpoints" / "step-000001" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(MissingInputError, match=r"model\.safetensors has"):
        find_target(str(tmp_path / "run"), step=1)


def test_an_adapter_stays_one_or_becomes_part_of_its_base(adapter: Path, tmp_path: Path) -> None:
    target = find_target(str(adapter))
    kept, merged = export(target, tmp_path / "kept"), export(target, tmp_path / "merged", merge=True)
    assert (kept.form, merged.form) == ("adapter", "model")
    assert head(kept.folder)["library_name"] == "peft"
    assert head(merged.folder)["library_name"] == "transformers"
    base, one, two = load_model("tiny"), load_model(kept.folder), load_model(merged.folder)
    assert (one.adapted, two.adapted) == (True, False)
    tokens = [5, 9, 30, 12, 7]
    gap = (plain_logits(one.model, tokens) - plain_logits(two.model, tokens)).abs().max()
    assert float(gap.detach()) <= 1e-4
    moved = (plain_logits(base.model, tokens) - plain_logits(two.model, tokens)).abs().max()
    assert float(moved.detach()) > 0.1


def test_weights_are_rounded_once_to_the_format_asked_for(adapter: Path, run: Path, tmp_path: Path) -> None:
    merged = export(find_target(str(adapter)), tmp_path / "exact", merge=True).folder
    rounded = export(find_target(str(adapter)), tmp_path / "rounded", merge=True, dtype="bfloat16").folder
    exact, found = load_file(merged / "model.safetensors"), load_file(rounded / "model.safetensors")
    assert found.keys() == exact.keys()
    assert all(torch.equal(found[name], value.to(torch.bfloat16)) for name, value in exact.items())
    assert json.loads((rounded / "config.json").read_text())["dtype"] == "bfloat16"
    assert "stored in bfloat16" in (rounded / "README.md").read_text()
    half = export(find_target(str(run)), tmp_path / "half", dtype="float16").folder
    assert {value.dtype for value in load_file(half / "model.safetensors").values()} == {torch.float16}


def test_wishes_that_cannot_be_are_refused_before_anything_is_written(adapter: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--merge: .* has no adapter"):
        export(find_target(str(run)), tmp_path / "a", merge=True)
    with pytest.raises(ConfigError, match=r"--dtype: .* is an adapter"):
        export(find_target(str(adapter)), tmp_path / "a", dtype="bfloat16")
    with pytest.raises(ConfigError, match="there is no dtype 'bf16'"):
        export(find_target(str(run)), tmp_path / "a", dtype="bf16")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("keep")
    with pytest.raises(OutputError, match="is not empty"):
        export(find_target(str(run)), tmp_path / "used")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["mine", "used"]


def test_a_failure_leaves_nothing_half_made(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVEY_FAULT", "fsync:3:ENOSPC")
    with pytest.raises(StorageError, match="No space left"):
        export(find_target(str(run)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_s_own_card_is_kept(tmp_path: Path) -> None:
    made = export(find_target("tiny"), tmp_path / "out")
    assert (made.folder / "README.md").read_text().startswith("# tiny")


# The card


def facts(**changes: Any) -> Facts:
    return Facts(**{"name": "me/mine", "form": "model", "base": "org/base", "hub_base": True, **changes})


def test_the_head_names_a_base_of_the_hub_and_how_the_model_relates_to_it() -> None:
    assert front_matter(facts())["base_model_relation"] == "finetune"
    found = front_matter(facts(form="adapter", rank=8, licence="apache-2.0"))
    assert (found["base_model"], found["base_model_relation"]) == ("org/base", "adapter")
    assert (found["library_name"], found["license"], found["tags"]) == ("peft", "apache-2.0", ["covey", "lora"])


def test_nothing_is_invented_of_a_folder_without_a_run() -> None:
    card = write_trained_card(facts(base="", hub_base=False))
    assert "says nothing of how it was trained" in card
    assert "How good it is" not in card
    assert "Licence: not stated" in card
    assert 'LLM("org/base", enable_lora=True, max_lora_rank=16)' in write_trained_card(facts(form="adapter", rank=16))


def test_folders_of_this_machine_stay_out_of_cards(run: Path, tmp_path: Path) -> None:
    assert portable({"path": "/data/me/rows.jsonl", "stop": ["/", "</a>"], "n": 1}) == {
        "path": "rows.jsonl",
        "stop": ["/", "</a>"],
        "n": 1,
    }
    text = (export(find_target(str(run)), tmp_path / "out").folder / "README.md").read_text()
    assert str(run.parent) not in text


def test_what_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert [is_hub_id(name) for name in ("org/name", "tiny", "a/b", "/abs/path", "a/b/c")] == [
        True,
        False,
        False,
        False,
        False,
    ]


# The hub

CALL = """
import sys
from pathlib import Path
from covey.errors import CoveyError
from covey.export import check_push, push
from covey.target import Target
try:
    token = check_push("me/mine", Target(named="tiny", model="tiny"), merge=False)
    print(push(Path(sys.argv[1]), "me/mine", token=token))
except CoveyError as error:
    print(error)
    raise SystemExit(error.exit_code)
"""


@dataclass
class Hub:
    """A hub that takes one commit of small files. `status` is its answer to the making of a repository."""

    status: int = 200
    made: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    token: str | None = None


@pytest.fixture
def hub() -> Iterator[tuple[Hub, str]]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            state.token = self.headers["Authorization"]
            answer = self.answer(body)
            data = json.dumps(answer).encode()
            self.send_response(state.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def answer(self, body: str) -> dict[str, Any]:
            base = f"http://127.0.0.1:{self.server.server_address[1]}"
            if self.path == "/api/repos/create":
                state.made = json.loads(body)
                return (
                    {"url": f"{base}/me/mine", "name": "me/mine", "id": "1"} if state.status == 200 else {"error": "no"}
                )
            if self.path.endswith("/preupload/main"):
                found = [item["path"] for item in json.loads(body)["files"]]
                return {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in found]}
            if self.path.endswith("/commit/main"):
                for line in body.splitlines():
                    item = json.loads(line)
                    if item["key"] == "file":
                        state.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                return {"commitUrl": f"{base}/me/mine/commit/1", "commitOid": "1" * 40, "success": True}
            return {"errors": [], "warnings": []}  # validation of the card

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def call(folder: Path, endpoint: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A push in a fresh process: the hub's library reads its address when it is imported."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith("HF_") and "proxy" not in name.lower()
    }
    environment = {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder.parent / "hf"),
        "OMP_NUM_THREADS": "1",
        **more,
    }
    return subprocess.run(
        [sys.executable, "-c", CALL, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: unknown\n---\n# mine\n")
    (folder / "config.json").write_text("{}")
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_push_makes_a_private_repository_and_one_commit(hub: tuple[Hub, str], small: Path) -> None:
    state, endpoint = hub
    done = call(small, endpoint, HF_TOKEN="hf_secret")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout == f"{endpoint}/me/mine\n"
    assert (state.made["name"], state.made["organization"], state.token) == ("mine", "me", "Bearer hf_secret")
    assert state.made.get("private") is True or state.made.get("visibility") == "private"
    assert state.files == {name: (small / name).read_bytes() for name in ("README.md", "config.json")}


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "token that may write to me"), (403, "token that may write to me"), (500, "push it later")],
)
def test_a_hub_that_refuses_is_one_line(hub: tuple[Hub, str], small: Path, status: int, words: str) -> None:
    state, endpoint = hub
    state.status = status
    done = call(small, endpoint, HF_TOKEN="hf_secret")
    assert done.returncode == ServerError.exit_code, done.stderr
    assert words in done.stdout
    assert f"hf upload me/mine {small}" in done.stdout
    assert "hf_secret" not in done.stdout + done.stderr
    assert done.stdout.count("\n") == 1


def test_without_network_or_token_a_push_is_refused_before_anything_is_written(small: Path) -> None:
    done = call(small, "http://127.0.0.1:9", HF_TOKEN="hf_secret")
    assert (done.returncode, "it does not answer" in done.stdout) == (69, True), done
    done = call(small, "http://127.0.0.1:9")
    assert (done.returncode, "there is no token" in done.stdout) == (69, True), done


def test_what_cannot_be_pushed(adapter: Path) -> None:
    tiny = Target(named="tiny", model="tiny")
    for name in ("mine", "me/mine/more", "me/..", ""):
        with pytest.raises(ConfigError, match="Write OWNER/NAME"):
            exporting.check_push(name, tiny, merge=False)
    with pytest.raises(ConfigError, match=r"is on this machine only. Add --merge"):
        exporting.check_push("me/mine", find_target(str(adapter)), merge=False)
