"""Several sources in fixed shares: every step holds each of them, and each is scored by its own reward."""

import covey

sums = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(5, 25) for b in range(5, 25)]
copies = [{"prompt": f"copy {word}:", "answer": word} for word in ("abc", "bed", "cafe", "dead", "face", "fade")]
run = covey.train(
    model="tiny",
    data={"sums": sums, "copies": copies},
    steps=5,
    **{"task.weights": {"sums": 3, "copies": 1}, "budget.sampling.max_tokens": 12, "budget.eval_problems": 20},
)
print({name: value for name, value in run.metrics()[-1].items() if name.startswith("eval/accuracy")})
