"""Claims about ratios and surrogates. Training claims take four optimizer steps per batch: with one, all of these are alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor

from covey import recipes
from covey.batch import Credited, Live
from covey.recipes.claims.claim import Claim, Near
from covey.recipes.claims.data import hold, make_batch
from covey.recipes.claims.learn import Curve, Plan, area, at_level, learn, reached
from covey.recipes.claims.worlds import Phrases
from covey.recipes.recipe import Recipe
from covey.stages.credit import initial_states, weigh
from covey.stages.objective import objective

WORDS = Plan(batches=60, until=0.95)
"""Four passes at a rate of .1 can move a logit by .4, beyond log 1.28: every clip range that is compared here acts."""
HALF = Plan(batches=80, prompts=4, until=0.95)
LEVEL = 0.8


def tokens_at(log_ratios: Tensor, advantages: Tensor | float, logp: Tensor | float = -4.0) -> tuple[Credited, Tensor]:
    """Rows of tokens [N T] at these log-ratios, with these advantages, and their live logp."""
    n, width = log_ratios.shape
    batch = make_batch(torch.zeros(n, width, dtype=torch.long), torch.zeros(n), torch.arange(n))
    live, worth = torch.zeros_like(log_ratios) + logp, torch.zeros_like(log_ratios) + advantages
    batch = hold(batch, live - log_ratios, {"correction": batch.mask.double()})
    return Credited(**vars(batch), advantage=worth, weight=batch.mask.double()), live.requires_grad_()


def slopes(recipe: Recipe, log_ratios: Sequence[float], advantages: Sequence[float]) -> Tensor:
    """The gradient [T] of the gain by the logp of each token of one row, weights included."""
    row, live = tokens_at(_row(log_ratios), _row(advantages))
    return _gradient(recipe, row, live)[0]


def _row(values: Sequence[float]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def slopes_apart(recipe: Recipe, log_ratios: Tensor, advantage: float = 1.0, logp: Tensor | float = -4.0) -> Tensor:
    """The gradient [N] of the gain by the logp of tokens that stand alone in their rows, without the weights."""
    rows, live = tokens_at(log_ratios[:, None], advantage, logp)
    return _gradient(recipe, rows, live)[:, 0] / weigh(recipe, rows).weight[:, 0]


def _gradient(recipe: Recipe, rows: Credited, live: Tensor) -> Tensor:
    plain = recipe.but(penalties=())
    loss, _ = objective(plain, Live(live), weigh(plain, rows), initial_states(plain))
    return torch.autograd.grad(-loss, live)[0]


@cache
def rise(name: str, start: float = 0.01, steps: int = 200, lr: float = 0.05) -> float:
    """Probability of a rare right arm after many steps of ascent on one batch in which it was drawn once."""
    recipe = recipes.get(name).but(penalties=())
    row, _ = tokens_at(torch.zeros(1, 1, dtype=torch.float64), 1.0)
    held = torch.tensor([[math.log(start)]], dtype=torch.float64)
    row = weigh(recipe, row.with_(old_logp=held, sampled_logp=held))
    logit = torch.tensor(math.log(start / (1 - start)), dtype=torch.float64, requires_grad=True)
    for _ in range(steps):
        live = Live(torch.nn.functional.logsigmoid(logit).reshape(1, 1))
        (gradient,) = torch.autograd.grad(-objective(recipe, live, row, initial_states(recipe))[0], logit)
        with torch.no_grad():
            logit += lr * gradient
    return float(logit.detach().sigmoid())


def rare_token(seed: int) -> Mapping[str, float]:
    """How much further a token of probability .01 rises within one batch with the upper clip at .28 than at .2."""
    higher, same = rise("dapo"), rise("grpo")
    return {"rise at .28 - rise at .2": higher - same, "rises to, .28": higher, "rises to, .2": same}


def unclipped_rise(seed: int) -> Mapping[str, float]:
    """The same for a detached weight."""
    free, clipped = rise("cispo"), rise("dapo")
    return {"rise - rise of a clip at .28": free - clipped, "rises to": free}


def entropy_at(curve: Curve, level: float = LEVEL) -> float:
    """Entropy when success first reached a level; NaN if it never did."""
    return at_level(curve, "entropy", level)


def higher_entropy(seed: int) -> Mapping[str, float]:
    """Entropy at equal success, upper clip at .28 minus .2."""
    dapo = recipes.get("dapo")
    higher, same = (learn(r, Phrases, WORDS, seed) for r in (dapo, dapo.but(**{"surrogate.high": 0.2})))
    return {
        "entropy at .28 - at .2": entropy_at(higher) - entropy_at(same),
        "entropy, .28": entropy_at(higher),
        "entropy, .2": entropy_at(same),
        "share clipped above, .28": area(higher[1:], "clip/high"),
        "share clipped above, .2": area(same[1:], "clip/high"),
    }


def dynamic_sampling(seed: int) -> Mapping[str, float]:
    """Batches until .9 success without refill minus with."""
    dapo = recipes.get("dapo")
    refill, plain = (learn(r, Phrases, HALF, seed) for r in (dapo, dapo.but(admit=())))
    return {
        "batches without - with": reached(plain, 0.9) - reached(refill, 0.9),
        "batches with": reached(refill, 0.9),
        "batches without": reached(plain, 0.9),
        "share of trained tokens without advantage, with": area(refill[1:], "advantage/zero_frac"),
        "share of trained tokens without advantage, without": area(plain[1:], "advantage/zero_frac"),
    }


def dynamic_tokens(seed: int) -> Mapping[str, float]:
    """Sampled tokens until .9 success without refill minus with."""
    dapo = recipes.get("dapo")
    refill, plain = (learn(r, Phrases, HALF, seed) for r in (dapo, dapo.but(admit=())))
    tokens = [reached(curve, 0.9, by="sampled") for curve in (refill, plain)]
    return {"tokens without - with": tokens[1] - tokens[0], "tokens with": tokens[0], "tokens without": tokens[1]}


def sequence_noise(seed: int) -> Mapping[str, float]:
    """std of the sequence ratio times sqrt(T) over the std of the token ratio under noise of .05, T = 256."""
    gspo, draw, length = recipes.get("gspo"), torch.Generator().manual_seed(seed), 256
    noise = 0.05 * torch.randn(2000, length, generator=draw, dtype=torch.float64)
    batch = make_batch(torch.zeros(2000, length, dtype=torch.long), torch.zeros(2000), torch.zeros(2000).long())
    row = Credited(**vars(hold(batch, noise * 0)), advantage=noise, weight=noise)
    ratio = gspo.ratio(Live(noise), row)[:, 0].exp()  # type: ignore[misc, operator]
    band = (ratio < 1 - 3e-4) | (ratio > 1 + 4e-4)
    return {
        "std(s) sqrt(T) / std(rho)": float(ratio.std() * length**0.5 / noise.exp().std()),
        "share outside the band": float(band.double().mean()),
    }


def noisy_cosine(recipe: Recipe, seed: int, noise: float = 0.05) -> float:
    """Cosine of a recipe's gradient with noise in the old logp to its gradient without; 8 x 8 responses of 64 tokens."""
    draw = torch.Generator().manual_seed(seed)
    table = torch.randn(8, 8, generator=draw, dtype=torch.float64).requires_grad_()
    group = torch.arange(8).repeat_interleave(8)
    logp = table.log_softmax(-1)
    tokens = torch.multinomial(logp.detach().exp()[group], 64, replacement=True, generator=draw)
    chosen = logp[group].gather(1, tokens)
    batch = make_batch(tokens, torch.zeros(64), group)
    reward = torch.randn(64, generator=draw, dtype=torch.float64)
    shift = noise * torch.randn(chosen.shape, generator=draw, dtype=torch.float64)
    found = []
    for offset in (torch.zeros_like(shift), shift):
        held = hold(batch, chosen + offset, {"correction": batch.mask.double()})
        row = Credited(**vars(held), advantage=reward[:, None].expand(-1, 64), weight=batch.mask.double())
        loss, _ = objective(recipe, Live(chosen), weigh(recipe, row), initial_states(recipe))
        found.append(torch.autograd.grad(loss, table, retain_graph=True)[0].flatten())
    return float(torch.nn.functional.cosine_similarity(found[0], found[1], dim=0))


def noise_robustness(seed: int) -> Mapping[str, float]:
    """How much nearer to its clean gradient the sequence ratio stays than the token ratio."""
    sequence = noisy_cosine(recipes.get("gspo"), seed)
    token = noisy_cosine(recipes.get("grpo").but(penalties=()), seed)
    wide = noisy_cosine(recipes.get("gspo").but(**{"surrogate.low": 0.2, "surrogate.high": 0.2}), seed)
    return {
        "cosine of sequence - of token ratio": sequence - token,
        "sequence": sequence,
        "token": token,
        "sequence with a band of .2": wide,
    }


def token_form(seed: int) -> Mapping[str, float]:
    """Largest difference of the token form to the sequence form for one advantage per row, and to a hand computation else."""
    draw, worst = torch.Generator().manual_seed(seed), 0.0
    for _ in range(20):
        noise = (3e-4 * torch.randn(7, generator=draw)).tolist()
        for advantage in (1.0, -0.7):
            pair = [slopes(recipes.get(name), noise, [advantage] * 7) for name in ("gspo", "gspo_token")]
            worst = max(worst, float((pair[0] - pair[1]).abs().max()))
    wide = recipes.get("gspo_token").but(**{"surrogate.low": 1.0, "surrogate.high": 9.0})
    by_hand = math.exp(0.2 / 3) / 3 * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)
    turns = slopes(wide, [0.1, -0.2, 0.3], [1, 1, -1])
    return {"largest difference": max(worst, float((turns - by_hand).abs().max())), "per turn": float(turns[0])}


def outlier(seed: int) -> Mapping[str, float]:
    """How much the largest token gradient grows by one outlier of +3 among 64 tokens, A = -1: token clip minus geometric mean."""
    out = {}
    for name in ("grpo", "gmpo"):
        calm, wild = (slopes(recipes.get(name), [last] + [0.0] * 63, [-1.0] * 64) for last in (0.0, 3.0))
        out[name] = float(wild.abs().max() / calm.abs().max())
    return {"growth, token clip - geometric mean": out["grpo"] - out["gmpo"], **out}


def spread(curve: Curve) -> float:
    """The mean width of the batches' token log-ratios at their last pass, until success reached the level."""
    end = math.ceil(reached(curve, LEVEL)) if not math.isnan(reached(curve, LEVEL)) else len(curve) - 1
    return sum(point["spread"] for point in curve[1 : end + 1]) / end


def narrow_ratios(seed: int) -> Mapping[str, float]:
    """Range of token log-ratios at the last of four passes until .8 success: token clip minus geometric mean."""
    token, geometric = (learn(_without_kl(name), Phrases, WORDS, seed) for name in ("grpo", "gmpo"))
    return {
        "range of token clip - of geometric mean": spread(token) - spread(geometric),
        "range, token clip": spread(token),
        "range, geometric mean": spread(geometric),
    }


def _without_kl(name: str) -> Recipe:
    return recipes.get(name).but(penalties=())


def dropped(seed: int) -> Mapping[str, float]:
    """Share of log-ratios in [-3, 3] at which a token with A > 0 gets no gradient."""
    share = {name: share_without_gradient(recipes.get(name)) for name in ("cispo", "grpo")}
    six = float(slopes_apart(recipes.get("cispo"), torch.tensor([6.0]).double().log())[0])
    return {"share without gradient": share["cispo"], "with the clip": share["grpo"], "slope at rho = 6": six}


def share_without_gradient(recipe: Recipe, advantage: float = 1.0) -> float:
    """The share of log-ratios in [-3, 3] at which a token has no gradient."""
    found = slopes_apart(recipe, torch.linspace(-3, 3, 601, dtype=torch.float64), advantage)
    return float((found == 0).double().mean())


def faster(first: str, second: str, seed: int) -> Mapping[str, float]:
    """1 - (batches of the first) / (batches of the second) until .9 success."""
    curves = [learn(_without_kl(name).but(admit=()), Phrases, WORDS, seed) for name in (first, second)]
    batches = [reached(curve, 0.9) for curve in curves]
    return {
        f"1 - batches of {first} / of {second}": 1 - batches[0] / batches[1],
        f"batches, {first}": batches[0],
        f"batches, {second}": batches[1],
        f"success over the curve, {first} - {second}": _same_length(*curves),
    }


def _same_length(first: Curve, second: Curve) -> float:
    """Difference of mean success over the first batches that both have."""
    n = min(len(first), len(second))
    return area(first[:n]) - area(second[:n])


def steps_of_sequences(seed: int) -> Mapping[str, float]:
    """Sequence clip against token clip."""
    return faster("gspo", "grpo", seed)


def steps_of_detached_weight(seed: int) -> Mapping[str, float]:
    """Detached weight against clip-higher."""
    return faster("cispo", "dapo", seed)


claims = (
    Claim(
        name="clip-higher-rise",
        recipes=("dapo",),
        says="The upper clip decides how far a rare token can rise; .28 leaves it more room than .2.",
        paper="Closed form .013121 against .012354 from .01; clip-higher takes AIME24 from 36 to 38 (arXiv 2503.14476 table 1).",
        measures="probability of a rare arm (.01) after 200 steps on one batch, .28 minus .2",
        trial=rare_token,
    ),
    Claim(
        name="clip-higher-entropy",
        recipes=("dapo",),
        says="Clip-higher keeps entropy up.",
        paper="Curves of entropy; no number (arXiv 2503.14476 section 3.1).",
        measures="entropy in nats per word when success reaches .8, high .28 minus .2; four passes per batch",
        trial=higher_entropy,
        seeds=16,
        note="A bandit cannot show it: three words in a row, half of six words right at each place.",
    ),
    Claim(
        name="dynamic-sampling-steps",
        recipes=("dapo",),
        says="Refilling groups without signal saves steps.",
        paper="AIME24 42 -> 50, in fewer steps (arXiv 2503.14476 table 1); 50 -> 52 in the maintained rerun.",
        measures="batches until .9 success without refill minus with; four passes per batch",
        trial=dynamic_sampling,
        seeds=16,
    ),
    Claim(
        name="dynamic-sampling-tokens",
        recipes=("dapo",),
        says="The steps saved outweigh what is sampled in vain.",
        paper="Training time is hardly affected (arXiv 2503.14476 section 3.2); no number at equal samples.",
        measures="sampled tokens until .9 success without refill minus with",
        trial=dynamic_tokens,
        seeds=16,
        note="Whole waves are sampled and surplus groups are dropped, as the method's own code does.",
    ),
    Claim(
        name="sequence-ratio-noise",
        recipes=("gspo",),
        says="The length-normalised ratio is sqrt(T) times less noisy than a token's.",
        paper="No number (arXiv 2507.18071). Closed form: 1.",
        measures="std(s) sqrt(T) / std(rho), noise .05 in logp, T = 256, 2000 rows",
        trial=sequence_noise,
        rule=Near(1, 0.05),
        seeds=5,
    ),
    Claim(
        name="sequence-ratio-robustness",
        recipes=("gspo",),
        says="The sequence ratio tolerates a mismatch of logp, as of mixtures of experts, better than token ratios.",
        paper="Trains mixtures of experts without replaying the routing (arXiv 2507.18071), a curve.",
        measures="cosine of the gradient under noise .05 in the old logp to the clean one, sequence minus token ratio",
        trial=noise_robustness,
        seeds=16,
        note="Each with its own clip range.",
    ),
    Claim(
        name="sequence-clip-steps",
        recipes=("gspo",),
        says="A clip of whole sequences learns faster than one of tokens.",
        paper="Higher training efficiency on Qwen3-30B-A3B (arXiv 2507.18071, curves).",
        measures="1 - batches to .9 success / those of the clip at .2; four passes per batch",
        trial=steps_of_sequences,
        seeds=16,
        note="The band of 3e-4 and 4e-4 is meant for long responses; here they have three words.",
    ),
    Claim(
        name="token-form-equality",
        recipes=("gspo_token",),
        says="With one advantage per row the token form has the gradient of the sequence form; turns may differ in sign.",
        paper="Equal (arXiv 2507.18071, section on the token variant); .356313 per token in the worked example.",
        measures="largest difference of the two gradients, and of the turns' to a hand computation",
        trial=token_form,
        rule=Near(0, 1e-8),
    ),
    Claim(
        name="outlier-growth",
        recipes=("gmpo",),
        says="A geometric mean is insensitive to outliers among the ratios.",
        paper="No number (arXiv 2507.20673). Closed form: growth e^3 = 20.1 against e^(3/64) = 1.048.",
        measures="growth of the largest token gradient by one log-ratio of +3 in 64, A = -1, token clip minus geometric mean",
        trial=outlier,
    ),
    Claim(
        name="geometric-mean-range",
        recipes=("gmpo",),
        says="Ratios stay in a narrower range in training.",
        paper="Curves of log-ratio ranges (arXiv 2507.20673); +4.1 % on average over GRPO.",
        measures="range of token log-ratios at the last of four passes until .8 success, token clip minus geometric mean",
        trial=narrow_ratios,
        seeds=16,
    ),
    Claim(
        name="no-dropped-tokens",
        recipes=("cispo",),
        says="No token's gradient is dropped by the clip.",
        paper="All tokens contribute (arXiv 2506.13585 section 3.1). Slope 5 at ratio 6 with the bound 5.",
        measures="share of log-ratios in [-3, 3] at which a token with A > 0 has no gradient",
        trial=dropped,
        rule=Near(0, 1e-8),
    ),
    Claim(
        name="detached-weight-rise",
        recipes=("cispo",),
        says="A rare token may rise further within one batch than under any clip.",
        paper="No number (arXiv 2506.13585 section 3.1). Closed form .975325 against .013121 from .01.",
        measures="probability of a rare arm (.01) after 200 steps on one batch, minus that of a clip at .28",
        trial=unclipped_rise,
    ),
    Claim(
        name="detached-weight-steps",
        recipes=("cispo",),
        says="Detached weights need fewer steps than clip-higher.",
        paper="Equals DAPO on AIME24 at 50 % of its steps, Qwen2.5-32B (arXiv 2506.13585 section 3.1), i.e. .5.",
        measures="1 - batches to .9 success / those of clip-higher; four passes per batch, no refill in either",
        trial=steps_of_detached_weight,
        seeds=16,
        note="The direction is judged, not the paper's size.",
    ),
)
