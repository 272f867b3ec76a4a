"""`covey eval` asks a server: the same answers as in this process, and one line for a server that cannot serve."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from covey.cli import main
from covey.engines.loading import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from served import Served, serve

ASK = ["eval", "tiny", "--json", "--temperature", "0", "budget.eval_problems=4", "budget.sampling.max_tokens=16"]


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Served, str]]:
    torch.set_num_threads(1)
    model = Served(load_model("tiny"))
    with serve(model) as url:
        yield model, url


def test_a_server_gives_the_same_evaluation(served: tuple[Served, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ASK) == 0
    here = json.loads(capsys.readouterr().out)
    assert main([*ASK, f"engines.server.url={served[1]}"]) == 0
    there = json.loads(capsys.readouterr().out)
    numbers = {name for name in here if name.startswith("eval/")}
    assert numbers
    assert {name: there[name] for name in numbers} == pytest.approx({name: here[name] for name in numbers}, nan_ok=True)


def line_of(capsys: pytest.CaptureFixture[str], code: int, *settings: str) -> str:
    assert main([*ASK, *settings]) == code
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    return shown.err


def test_a_server_that_refuses_connections_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        assert f"server {url}: the list of models: ConnectError" in line_of(capsys, 69, f"engines.server.url={url}")


def test_a_server_with_another_model_is_one_line(
    served: tuple[Served, str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(capsys, 2, f"engines.server.url={served[1]}", "engines.server.model=large")
    assert "serves no 'large'. Known: tiny." in line


def test_a_server_with_other_token_ids_is_one_line(
    served: tuple[Served, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served[0], "encode", lambda text: [5, 6, 7])
    assert "other token ids: the server makes [5, 6, 7] of" in line_of(capsys, 2, f"engines.server.url={served[1]}")


def test_training_refuses_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for more in ([], ["--dry-run"]):
        assert main(["train", "engines.server.url=http://127.0.0.1:9/v1", "--out", str(tmp_path / "out"), *more]) == 2
        assert "engines.server: training gives its sampler new weights" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
