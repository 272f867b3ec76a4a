"""Train a LoRA adapter; the run's model is a PEFT folder, and merging it gives an ordinary one with the same outputs."""

from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

import covey
from covey.cli import main

run = covey.train(
    model="tiny",
    steps=10,
    out="runs/adapter",
    **{"model.lora.rank": 8, "budget.optimizer.lr": 5e-3, "budget.eval_problems": 50},
)
adapted = AutoPeftModelForCausalLM.from_pretrained(run.model)
if main(["export", str(run.folder), "--merge", "--out", "merged"]) != 0:
    raise SystemExit("the export failed")
merged = AutoModelForCausalLM.from_pretrained(Path("merged"))
tokens = torch.arange(20)[None]
with torch.no_grad():
    gap = (adapted(tokens).logits - merged(tokens).logits).abs().max()
print(f"accuracy {run.metrics()[-1]['eval/accuracy']:.2f}; adapter and merged model differ by {gap:.1e}")
