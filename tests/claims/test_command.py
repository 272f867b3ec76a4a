"""`covey claims` as it is called: names, the table, JSON, the page, mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from covey.cli import main


def test_some_claims_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "kl-k1-loss", "kl-k2-loss"]) == 0
    out = capsys.readouterr().out
    assert out.count("reproduced") == 2
    assert "paper: Gradient 0 in expectation (arXiv 2510.01555)." in out  # few claims are shown with their words


def test_json_holds_words_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "std-difficulty-bias", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["recipes"], found["verdict"], found["expected"]) == (["grpo"], "reproduced", "> 0")
    assert found["low"] <= found["value"] <= found["high"]
    assert found["beside"]["factor at 0.024"]["value"] == pytest.approx(1.490585, abs=1e-6)
    assert found["seconds"] >= 0


def test_the_page_is_written_where_it_is_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "claims.md"
    assert main(["claims", "leave-one-out", "--quick", "--out", str(page)]) == 0
    assert "## leave-one-out" in page.read_text()


def test_a_list_checks_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", "dapo", "--list", "--json"]) == 0
    assert "clip-higher-entropy" in {claim["name"] for claim in json.loads(capsys.readouterr().out)}
    assert main(["claims", "gvpo", "--list"]) == 0
    assert "optimum-off-policy" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["kl-k1-los"], "error: covey claims: no claim and no recipe with claims is called 'kl-k1-los'. Did you mean"),
        (["kl-k1-loss", "--out", "nowhere/claims.md"], "error: nowhere/claims.md: cannot be written"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claims", *words]) in (2, 73, 74)
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == 1
