"""Train the embedded model on your own rows with your own reward, then look at what it learnt."""

import covey


def short_and_right(completion: str, answer: str | None) -> float:
    """1 for the right sum, a little less for every character that was not needed."""
    return float(completion.rstrip(".") == answer) - 0.01 * max(0, len(completion) - 3)


rows = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5, 30) for b in range(5, 30)]
run = covey.train(model="tiny", data=rows, reward=short_and_right, steps=20, **{"budget.sampling.max_tokens": 12})
for row in run.metrics():
    if "eval/accuracy" in row:
        print(f"after step {row['step']}: {row['eval/accuracy']:.2f} of the held-out sums scored as best")
print("the model:", run.model)
