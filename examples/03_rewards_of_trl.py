"""Reward functions in TRL's style run unchanged: several, with weights, one of them async; None is "cannot be scored"."""

import covey


def right(completions: list[str], answer: list[str], **kwargs: object) -> list[float | None]:
    """1 for the right sum; a response without any digit cannot be scored."""
    digits = ["".join(c for c in text if c.isdigit()) for text in completions]
    return [None if not found else float(found == gold) for found, gold in zip(digits, answer, strict=True)]


async def brief(prompts: list[str], completions: list[str], **kwargs: object) -> list[float]:
    """A little less for every character."""
    return [-len(text) / 10 for text in completions]


rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5, 30) for b in range(5, 30)]
run = covey.train(
    model="tiny",
    data=rows,
    reward=[right, brief],
    reward_weights=[1.0, 0.2],
    steps=10,
    **{"budget.sampling.max_tokens": 12, "budget.eval_problems": 40},
)
last = [row for row in run.metrics() if "reward/right" in row][-1]
print(f"right {last['reward/right']:.2f}, brief {last['reward/brief']:.2f}, not scored {last['reward/failed']:.0%}")
