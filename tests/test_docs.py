"""What the documentation shows is run: Python blocks as they stand, `covey train` lines up to their first step."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import generate  # noqa: E402  (the script beside the pages)

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
ROWS = '{"prompt": "12+7=", "answer": "19"}\n{"prompt": "1+1=", "answer": "2"}\n{"prompt": "3+4=", "answer": "7"}\n'


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text()) if name == language]


def commands(page: Path) -> list[str]:
    """The `covey train` lines of a page, in blocks and in running text."""
    text = page.read_text()
    lines = [line for code in blocks(page, "") for line in code.splitlines()] + re.findall(
        r"`(covey train[^`]*)`", text
    )
    found = [line.strip().removeprefix(".venv/bin/") for line in lines]
    return [
        line
        for line in found
        if line.startswith("covey train") and not re.search(r"--resume|\.\.\.|FOLDER|RUN|OPTIONS|surrogate=band", line)
    ]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    code = "\n".join(blocks(page, "python"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("page", "line"),
    [(p, line) for p in PAGES for line in commands(p)],
    ids=lambda v: v.name if isinstance(v, Path) else v,
)
def test_train_lines_are_right(page: Path, line: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "more.csv").write_text("prompt,answer,level\n2+2=,4,1\n2+3=,5,2\n")
    (tmp_path / "reward.py").write_text("def score(completion, answer):\n    return float(completion == answer)\n")
    if "my-task" in line:
        subprocess.run([sys.executable, "-m", "covey", "new", "my-task"], cwd=tmp_path, check=True, timeout=60)
    words = [word for word in shlex.split(line, comments=True)[1:] if word != "--dry-run"]
    done = subprocess.run(
        [sys.executable, "-m", "covey", *words, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "recipe:" in done.stdout


def test_there_are_examples_to_run() -> None:
    assert any(blocks(page, "python") for page in PAGES)
    assert sum(len(commands(page)) for page in PAGES) >= 4


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


@cache
def made() -> dict[str, str]:
    """The generated pages, from an interpreter in which no test has registered components of its own."""
    code = "import json, generate; print(json.dumps(generate.pages()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "docs", capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", generate.pages())
def test_generated_pages_are_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == made()[name], "run `make docs`"


def test_formulas_become_mathml_and_code_is_left_alone() -> None:
    made = generate.on_page_markdown("$$a_n$$ and $b$ but `$x$`, $5 and\n```\n$c$\n```\n")
    assert made.count("<math") == 2
    assert "`$x$`, $5 and\n```\n$c$\n```\n" in made


def test_the_page_of_metrics_is_the_table_in_the_code() -> None:
    from covey.observe.names import markdown

    assert (ROOT / "docs/metrics.md").read_text().endswith(markdown())
