"""Predicted against measured peak memory of whole runs: `covey plan` beside the high-water mark of a `covey train` process.

The constants of the plan (small objects beside a tensor, libraries' first use) were read off runs like those of CALIBRATION;
CASES judge it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOLERANCE = 0.15
STEPS = 3
EOS = 1
TRAIN = """
import sys
from covey.cli import main
code = main(sys.argv[1:])
marks = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print("peak", int(marks[0]) * 1024)
sys.exit(code)
"""
Shape = dict[str, Any]
TINY = Path(__file__).resolve().parents[1] / "src/covey/models/tiny"


@dataclass(frozen=True)
class Case:
    """A model with random weights, the settings of a run, and its longest response."""

    name: str
    shape: Shape
    settings: Sequence[str] = ()
    longest: int = 64
    kind: str = "qwen3"
    base: Sequence[str] = field(default=("budget.prompts_per_step=4", "budget.eval_problems=1"))

    @property
    def response(self) -> int:
        """The mean length of responses: random weights end one with probability 1 / V after each token."""
        vocabulary = self.shape["vocab_size"]
        return math.ceil(vocabulary * (1 - (1 - 1 / vocabulary) ** self.longest))

    def arguments(self, folder: Path) -> list[str]:
        """The command line after `covey train` or `covey plan`."""
        common = ["task=arithmetic", f"steps={STEPS}", "report.completions_every=null"]
        common.append(f"budget.sampling.max_tokens={self.longest}")
        return [f"model={folder}", *common, *self.base, *self.settings]


def shape(layers: int, width: int, vocabulary: int, **more: Any) -> Shape:
    """A model of heads of 64 numbers, two queries to a key."""
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_attention_heads": width // 64,
        "num_key_value_heads": width // 128,
        "vocab_size": vocabulary,
        "head_dim": 64,
        "tie_word_embeddings": True,
        **more,
    }


EXPERTS = shape(4, 256, 4096, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=256)
RECOMPUTE = "engines.gradient_checkpointing=true"


def sliced(tokens: int) -> str:
    """The setting of the micro-batch."""
    return f"engines.tokens_per_slice={tokens}"


CALIBRATION = (
    Case("8x512, V 4096, T 64", shape(8, 512, 4096)),
    Case("6x384, V 32000, T 64, slice 1024", shape(6, 384, 32000), (sliced(1024),)),
    Case("10x256, V 4096, T 256, recomputed", shape(10, 256, 4096), (RECOMPUTE,), longest=256),
)
CASES = (
    Case("10x256, V 128, T 64", shape(10, 256, 128)),
    Case("6x256, V 4096, T 256", shape(6, 256, 4096), longest=256),
    Case("6x384, V 4096, T 128, slice 1024", shape(6, 384, 4096), (sliced(1024),), longest=128),
    Case("4x256, V 32000, T 64", shape(4, 256, 32000)),
    Case("8x512, V 4096, T 64, bfloat16", shape(8, 512, 4096), ("model.dtype=bfloat16",)),
    Case("8x384, V 4096, T 64, reference", shape(8, 384, 4096), ("recipe=grpo", sliced(1024))),
    Case("10x512, V 4096, T 64, LoRA", shape(10, 512, 4096), ("model.lora.rank=16", sliced(1024))),
    Case(
        "8x512, V 8192 untied, T 64, Llama",
        shape(8, 512, 8192, tie_word_embeddings=False),
        kind="llama",
    ),
    Case("4x256, 8 experts, V 4096, T 64", EXPERTS, kind="qwen3_moe"),
    Case(
        "12x640, V 4096, T 16, slice 256, recomputed",
        shape(12, 640, 4096),
        (
            sliced(256),
            RECOMPUTE,
        ),
        longest=16,
    ),
)


def make_model(case: Case, folder: Path) -> None:
    """Write a model with random weights, and the embedded model's tokenizer, in hub format."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        case.kind, **case.shape, max_position_embeddings=4096, bos_token_id=None, eos_token_id=EOS, pad_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder)


def run_process(arguments: Sequence[str], script: str | None = None) -> str:
    """The standard output of a fresh process; its errors are ours."""
    head = ["-m", "covey"] if script is None else ["-c", script]
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "COVEY_DEBUG": "1"}
    done = subprocess.run([sys.executable, *head, *arguments], capture_output=True, text=True, env=quiet, check=False)
    if done.returncode:
        raise SystemExit(f"covey {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def measure(case: Case, home: Path) -> dict[str, Any]:
    """Predicted and measured bytes of a case, each by a process of its own."""
    folder = home / "model"
    shutil.rmtree(folder, ignore_errors=True)
    maker = "import sys; from benchmarks.memory import make_by_name as m; m(*sys.argv[1:])"
    run_process([case.name, str(folder)], maker)
    arguments = case.arguments(folder)
    wanted = ["--response", str(case.response), "--no-knobs", "--json"]
    plan = json.loads(run_process(["plan", *arguments, *wanted]))
    out = run_process(["train", *arguments, "--out", str(home / "run"), "--json"], TRAIN)
    shutil.rmtree(home / "run")
    measured = int(next(line for line in reversed(out.splitlines()) if line.startswith("peak")).split()[1])
    return {
        "case": case.name,
        "predicted": plan["peak_bytes"],
        "measured": measured,
        "error": plan["peak_bytes"] / measured - 1,
        "phase": plan["peak_phase"],
        "plan": plan,
    }


def make_by_name(name: str, folder: str) -> None:
    """Write the model of the case of that name (in a process of its own, whose memory is not ours)."""
    make_model(next(case for case in (*CALIBRATION, *CASES) if case.name == name), Path(folder))


def measure_all(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Every case, one after another."""
    for case in cases:
        with tempfile.TemporaryDirectory() as home:
            yield measure(case, Path(home))


def main() -> None:
    """Print a line per case and how many are within the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", action="store_true", help="the cases that the constants come from")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    chosen = parser.parse_args()
    cases = [case for case in (CALIBRATION if chosen.calibration else CASES) if chosen.only in case.name]
    errors = []
    print(f"{'case':<46} {'predicted':>9} {'measured':>9}  error  worst phase (MiB)")
    for row in measure_all(cases):
        errors.append(row["error"])
        sizes = (row["predicted"] / 2**20, row["measured"] / 2**20)
        print(f"{row['case']:<46} {sizes[0]:>9.0f} {sizes[1]:>9.0f} {row['error']:>+6.1%}  {row['phase']}", flush=True)
    within = sum(abs(error) <= TOLERANCE for error in errors)
    typical = statistics.median(abs(error) for error in errors)
    found = {"within_15_percent": within, "cases": len(errors), "median_error": round(typical, 3)}
    print(json.dumps({"benchmark": "memory plan", **found}))


if __name__ == "__main__":
    main()
