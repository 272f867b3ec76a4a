"""Runs in vLLM's own environment: loads a model (and an adapter), answers prompts of ids greedily, prints JSON."""

from __future__ import annotations

import json
import os
import sys

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}.items():
    os.environ.setdefault(name, value)


def main() -> None:
    """Read one question from stdin and answer it on the last line of stdout."""
    asked = json.load(sys.stdin)
    import vllm
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    adapter = asked["adapter"]
    extra = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1} if adapter else {}
    llm = LLM(asked["model"], dtype="float32", max_model_len=256, enforce_eager=True, max_num_seqs=8, seed=0, **extra)
    sampling = SamplingParams(temperature=0, max_tokens=asked["max_tokens"])
    request = LoRARequest("adapter", 1, adapter) if adapter else None
    prompts = [{"prompt_token_ids": tokens} for tokens in asked["prompts"]]
    found = llm.generate(prompts, sampling, use_tqdm=False, lora_request=request)
    told = llm.get_tokenizer().decode(asked["prompts"][0])
    answer = {
        "version": vllm.__version__,
        "tokens": [list(item.outputs[0].token_ids) for item in found],
        "first_prompt": told,
    }
    print("\n" + json.dumps(answer))


if __name__ == "__main__":
    main()
