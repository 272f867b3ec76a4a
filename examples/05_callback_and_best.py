"""Stop when it is good enough, keep the best model, and look at what happens on the way."""

import covey


class Watch(covey.Callback):
    """Prints the reward of every fifth step and stops above 0.9."""

    def on_log(self, run: covey.Run, logs: dict[str, float]) -> None:
        if run.step % 5 == 0:
            print(f"step {run.step}: reward {logs['reward/mean']:.2f}")
        if logs["reward/mean"] > 0.9:
            run.stop("the reward is above 0.9")


run = covey.train(
    steps=30,
    callbacks=[Watch()],
    quiet=True,
    **{"budget.eval_every": 10, "budget.best.metric": "eval/accuracy", "budget.eval_problems": 50},
)
print("the best model:", run.folder / "best", "the last one:", run.model)
