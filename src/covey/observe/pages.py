"""The page of every health code: what causes it, where the run shows it, what to turn. `docs/health/` is made of this."""

from __future__ import annotations

from dataclasses import dataclass

from covey.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Page:
    """One health code: when its line appears, why that happens, where to look in the run folder, and the knobs by effect."""

    code: str
    when: str
    cause: str
    evidence: str
    knob: str


PAGES: tuple[Page, ...] = (
    Page(
        "no-signal",
        "No group of this step has rollouts with different outcomes.",
        "An advantage compares the rollouts of one prompt. Where all are right, or all wrong, there is nothing to "
        "compare and the step's gradient is zero. A single such step is chance when there are few groups; several "
        "are `equal-groups`.",
        "`group/mixed`, `group/all_right` and `group/all_wrong` in `metrics.jsonl`; the texts in `rollouts/`.",
        "Nothing for one step. If it comes back: more `budget.prompts_per_step` or `budget.samples_per_prompt`, "
        "problems of a difficulty that the model solves now and then, or a recipe that samples again until the "
        "groups differ (`recipe.admit`).",
    ),
    Page(
        "equal-groups",
        "No group had a signal for five steps.",
        "All wrong: the problems are too hard, the answers cannot be parsed, the responses are cut off, or the "
        "reward never gives credit. All right: the problems are too easy, or the reward gives credit for anything.",
        "The line says on which side the groups are. Read some responses beside their answers in `rollouts/`: a "
        "right answer that is scored 0 is a broken reward. `stop/truncated` tells whether responses ended at all.",
        "First the reward: `covey check` scores reference answers, empty and shuffled ones. Then the data: easier "
        "problems (or harder ones), a curriculum. Then `budget.samples_per_prompt` and "
        "`budget.sampling.temperature`, which bring rare successes.",
    ),
    Page(
        "little-signal",
        "Over five steps at most one group in eight had a signal.",
        "As for `equal-groups`, less extreme: most of what is sampled teaches nothing, and the gradient is small "
        "and noisy.",
        "`group/mixed` over the steps; `group/all_right` against `group/all_wrong`.",
        "Problems nearer to what the model can do; `recipe.admit` with a refill (the time per step grows, "
        "`admit/waves` says how much); more `budget.samples_per_prompt`.",
    ),
    Page(
        "short-step",
        "The step trains with fewer groups than asked.",
        "The recipe admits only some groups, and sampling again as often as it allows did not bring enough of them.",
        "`admit/missing`, `admit/kept` and `admit/waves`.",
        "`recipe.admit.*.max_waves`, or problems of another difficulty. A short step is still right, its gradient "
        "only noisier.",
    ),
    Page(
        "truncation",
        "More than a fifth of the rollouts hit the token budget.",
        "Responses need more room than they get, the model does not know when to stop, or its stop token is not "
        "among those that count.",
        "`stop/truncated`, `length/mean` and `length/max`; `stop` of each rollout in `rollouts/`. The header of the"
        " run names the stop tokens.",
        "`budget.sampling.max_tokens`; `budget.sampling.stop` for texts that end a response; a filter or a length "
        "penalty of the recipe for responses that only ramble. Where a response without an end counts as wrong, a "
        "cut-off one teaches to be brief.",
    ),
    Page(
        "length-growth",
        "Responses are twice as long as at the start, and the reward is no better.",
        "A normalisation that makes long wrong responses cheap (arXiv 2503.20783), a reward that pays for length, "
        "or wandering.",
        "`length/mean` against `reward/mean`; compare the lengths of right and wrong rollouts in `rollouts/`.",
        "`recipe.weighting=constant`, which weighs every token alike; a length penalty in `recipe.mix`; a KL penalty.",
    ),
    Page(
        "length-collapse",
        "Responses are less than a third as long as at the start, and the reward is no better.",
        "The policy found that ending early costs nothing: mostly because long responses were cut off and counted "
        "as wrong, or because a length penalty weighs more than the answer.",
        "`length/mean` against `reward/mean` and `stop/truncated` of the first steps.",
        "`budget.sampling.max_tokens`; a smaller length penalty; a lower `budget.optimizer.lr`; a KL penalty.",
    ),
    Page(
        "entropy-collapse",
        "The entropy fell below a tenth of its start while less than 0.9 is solved.",
        "The policy became sure before it became right: all samples of a prompt are alike, and no new solution can "
        "be found.",
        "`entropy/sampled` against `reward/mean`; a falling `group/mixed` follows.",
        "A lower `budget.optimizer.lr`; a higher upper clip (`recipe.surrogate.high`, arXiv 2503.14476) at several "
        "optimizer steps per batch; an entropy bonus (`recipe.penalties`); `budget.sampling.temperature=1`.",
    ),
    Page(
        "entropy-explosion",
        "The entropy is more than twice that of the start, above one nat per token, and the reward is no better.",
        "The updates push probability away from wrong responses faster than towards right ones: too large a step, "
        "an entropy bonus that wins, or rewards that are mostly noise. The texts turn into word salad.",
        "`entropy/sampled`, `logp/mean`, `kl/sampled_vs_policy`; the responses of the last steps in `rollouts/`.",
        "A lower `budget.optimizer.lr` and `budget.optimizer.max_grad_norm`; a smaller entropy bonus; a KL penalty;"
        " resume from a checkpoint before the rise.",
    ),
    Page(
        "clipping",
        "The clip removes the gradient of more than a fifth of the tokens, over five steps.",
        "The policy moves far within one batch: too many optimizer steps on it, or too large ones. What is clipped "
        "teaches nothing, and the ratio of what is left is no longer near 1.",
        "`clip/low`, `clip/high`, `ratio/max` and `kl/sampled_vs_policy`.",
        "Fewer `budget.passes_per_batch` or `budget.optimizer_steps_per_pass`; a lower `budget.optimizer.lr`; wider"
        " `recipe.surrogate.low` and `recipe.surrogate.high`.",
    ),
    Page(
        "kl-growth",
        "The policy is more than half a nat per token away from the reference, over five steps.",
        "The reward pulls harder than the KL penalty holds. With a reward that a text can please without being "
        "right, this is how it is gamed: the reward rises while held-out accuracy falls.",
        "`penalty/kl` beside `reward/mean` and `eval/accuracy`; read the responses of the last steps.",
        "A larger `recipe.penalties.kl.coef`; a lower `budget.optimizer.lr`; `budget.best` keeps the best evaluated"
        " model anyway. Where the drift is wanted, leave the penalty out.",
    ),
    Page(
        "gradient-spike",
        "The gradient is more than ten times as long as usual.",
        "A few tokens dominate the step: very unlikely ones with a large advantage, a tiny group deviation that "
        "something is divided by, or a row of data unlike all others. `budget.optimizer.max_grad_norm` cut it, so "
        "the weights are safe.",
        "`grad/norm` of the step against its neighbours; `ratio/max`, `advantage/abs`; the step's file in "
        "`rollouts/`, sorted by advantage.",
        "Nothing for a single one. If they come often: a lower `budget.optimizer.lr`, a smaller "
        "`budget.optimizer.max_grad_norm`, and a look at the rows of these steps.",
    ),
    Page(
        "reward-failures",
        "Some rollouts could not be scored.",
        "The reward raised, timed out, crashed, ran out of memory, or returned something that is no number. Such a "
        "rollout is left out of loss and statistics; it is never a 0. A reward that returns None on purpose shows "
        "up here only when most rollouts have no score.",
        "The line counts the types. `reward/failed` is the share; the reason of each stands under `failures` in "
        "`rollouts/`.",
        "Mend the reward, and test it on the texts that failed. `scoring.timeout_s` and `scoring.memory_mb` are its"
        " limits; a run stops when more than `scoring.max_failed` of the rollouts fail.",
    ),
    Page(
        "skipped-step",
        "The gradient was not finite; the weights were left as they were.",
        "An overflow in the forward or backward pass, most often after too large an update. Three in a row stop the"
        " run (exit code 70).",
        "`grad/skipped`, and `grad/norm` and `logp/nonfinite` of the steps before.",
        "A lower `budget.optimizer.lr` or a longer `budget.optimizer.warmup_steps`; `model.dtype=float32`.",
    ),
    Page(
        "nonfinite",
        "The sampler's log-probabilities are NaN or infinite for some tokens.",
        "The weights are damaged, or a token was drawn whose probability rounds to zero in the number format of the"
        " model.",
        "`logp/nonfinite`; null in `sampled_logp` in `rollouts/` names the tokens.",
        "A lower `budget.optimizer.lr`; `model.dtype=float32`; `budget.sampling.top_p=1`. Resume from a checkpoint "
        "before it began.",
    ),
    Page(
        "mismatch",
        "Sampler and learner differ by more than 0.1 nats per token on the same tokens and weights.",
        "The two compute with other kernels, another number format or other settings (temperature, a template, an "
        "adapter that was not published), so that what is learnt from is not what the learner believes.",
        "`kl/sampled_vs_old`, which is about 0 where both agree; `sampled_logp` against `policy_logp` in `rollouts/`.",
        "`model.dtype=float32` shows whether it is rounding. If it has to stay: a correction of the recipe "
        "(`recipe.corrections`) weighs every token by the ratio of the two.",
    ),
)


def find_page(code: str) -> Page:
    """The page of a code. Raises ConfigError with the nearest code for any other word."""
    for page in PAGES:
        if page.code == code:
            return page
    known = [page.code for page in PAGES]
    raise ConfigError("covey explain", f"there is no health code {code!r}", did_you_mean(code, known))


def write_page(page: Page) -> str:
    """The page as Markdown."""
    parts = [f"**Cause.** {page.cause}", f"**In the run.** {page.evidence}", f"**What to turn.** {page.knob}"]
    return "\n\n".join([f"# {page.code}", f"*{page.when}*", *parts]) + "\n"


def list_codes() -> str:
    """All codes, a line each."""
    width = max(len(page.code) for page in PAGES)
    return "".join(f"{page.code:<{width}}  {page.when}\n" for page in PAGES)
