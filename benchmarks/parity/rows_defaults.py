"""Disagreements of defaults and of code that cannot be run here: what covey's own options show of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import trl
import verl
import yaml
from torchrl.objectives.llm import CISPOLoss
from trl import GRPOTrainer
from verl.trainer.ppo import core_algos

from benchmarks.parity import trl_peer, verl_peer
from benchmarks.parity.data import draw, with_
from benchmarks.parity.disagreements import Row, figures, tiny
from benchmarks.parity.ours import loss_and_gradient
from covey import recipes
from covey.batch import Batch
from covey.stages.filters import KBest

CONFIGS = Path(verl.__file__).parent / "trainer" / "config"


def mismatch_default() -> Row:
    """What happens to a sampler that differs a little, by default."""
    lengths = (16, 64)
    case = tiny(lengths, reward=[[1.0], [0.0]])
    gap = 0.02
    sampled = [[-1.0 - gap] * n for n in lengths]
    light = trl_peer.trainer(GRPOTrainer, case, logps=[case.old_logp], beta=0.0, use_vllm=True)
    prompts, responses, holes, texts, _, *rest = light._generate(None)
    light._generate = lambda _: (prompts, responses, holes, texts, sampled, *rest)
    output = GRPOTrainer._generate_and_score_completions(light, [{"prompt": "?"}] * 2)
    theirs = yaml.safe_load((CONFIGS / "algorithm" / "rollout_correction.yaml").read_text())
    batch: Batch = with_(case).batch()
    cut = recipes.get("grpo").but(corrections="truncated_importance").corrections[0]
    factors = cut(batch.with_(sampled_logp=batch.old_logp - gap * case.mask))
    return Row(
        "D15",
        "a sampler that differs, by default",
        "two responses of 16 and 64 tokens, the learner 0.02 nats above the sampler on every token: the factor of "
        "each response",
        (
            (
                "TRL with vLLM, default: the product over tokens, 0 beyond 3",
                figures(output["importance_sampling_ratio"].flatten()),
            ),
            ("verl, default rollout_is", str(theirs["rollout_is"])),
            ("covey, default", "none; the gap is logged (`kl/sampled_vs_old`)"),
            ("covey `truncated_importance`: per token, at most 2", figures(factors[:, 0])),
        ),
        "No preset corrects. In TRL the product drops long responses first: the noise of a product grows with length.",
    )


def dropped_masks() -> Row:
    """What a mask that is dropped would change."""
    base = tiny((4,), advantage=(1.0,), log_ratio=[[0.1, 0.3, 0.3, 0.1]])
    holes = with_(base, mask=torch.tensor([[True, False, False, True]]))
    return Row(
        "D17",
        "masks in GMPO's published code",
        "a response of 4 tokens, the middle two a tool's; log-ratios 0.1, 0.3, 0.3, 0.1; A = 1: the loss",
        (
            ("covey `gmpo`, the tool's tokens masked", figures(loss_and_gradient(recipes.get("gmpo"), holes)[0])),
            ("covey `gmpo`, without a mask", figures(loss_and_gradient(recipes.get("gmpo"), base)[0])),
        ),
        "The published script drops the mask in its branch of this method; it is no package and was not run. "
        "`gmpo`, TRL and verl heed it.",
        ran=False,
    )


def contradicting_page() -> Row:
    """A page whose settings contradict its text."""
    ours = recipes.get("lite_ppo")
    return Row(
        "D23",
        "LitePPO in ROLL's documentation",
        "what the paper says; ROLL is no package and was not run",
        (
            ("covey `lite_ppo`: advantage", f"{ours.advantage.kind}, scale {getattr(ours.advantage, 'scale', '')}"),
            ("covey `lite_ppo`: weighting", ours.weighting.kind),
            ("covey `lite_ppo`: penalties", str(len(ours.penalties))),
        ),
        "The paper: group mean, batch std, token mean, no critic, no KL. The settings on ROLL's page (GAE, a mean "
        "over responses, KL 0.001) are another method.",
        ran=False,
    )


def kept_denominator() -> Row:
    """Whether dropped responses still count."""
    lengths = (900, 300, 200, 700, 400, 500, 800, 100)
    rewards = (1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0)
    batch = tiny(lengths, reward=[[r] for r in rewards]).batch()
    batch = batch.with_(columns={**batch.columns, "score": batch.reward.sum(1)})
    tokens = []
    for denominator in ("all", "kept"):
        keep = KBest(metric="shortest", k=4, denominator=denominator)(batch)
        tokens.append(float(batch.mask[keep.denominator].sum()))
    return Row(
        "D24",
        "GFPO's denominator",
        "eight responses of 100 to 900 tokens, the four shortest kept: tokens in the denominator",
        (
            ("covey `k_best`, denominator=all (the paper's eq. 2)", figures(tokens[0])),
            ("covey `k_best`, denominator=kept", figures(tokens[1])),
        ),
        "`gfpo` is the paper's. TRL's trainer, which divided by the kept ones and took the unbiased std, is gone "
        "from 1.16 and was not run.",
        ran=False,
    )


def critic_defaults() -> Row:
    """With what a critic comes."""
    actor = yaml.safe_load((CONFIGS / "_generated_ppo_trainer.yaml").read_text())
    mine, theirs = recipes.get("ppo"), recipes.get("ppo@verl")
    return Row(
        "D28",
        "PPO's defaults",
        "lambda, how far values are clipped, KL in the reward",
        (
            (
                "verl",
                f"{actor['algorithm']['lam']}, {actor['critic']['cliprange_value']}, "
                f"{actor['algorithm']['use_kl_in_reward']}",
            ),
            ("TRL 1.16 has a PPO trainer", str(hasattr(trl, "PPOTrainer"))),
            ("covey `ppo`", f"{mine.advantage.lam}, {mine.critic.clip}, {mine.mix.kind}"),
            ("covey `ppo@verl`", f"{theirs.advantage.lam}, {theirs.critic.clip}, {theirs.mix.kind}"),
        ),
        "`ppo` is InstructGPT's with GAE at 0.95; `ppo@verl` and `ppo@openrlhf` are the peers' defaults.",
    )


def split_of(name: str) -> tuple[float, float]:
    """The gradient's size as a whole, and of both groups apart with weights of their own, as a micro-batch would have it."""
    case = draw(7)
    whole = loss_and_gradient(recipes.get(name), case)[1].norm()
    halves = []
    for group in (0, 1):
        rows = case.group == group
        chosen = {k: v[rows] if isinstance(v, torch.Tensor) else v for k, v in vars(case).items()}
        halves.append(loss_and_gradient(recipes.get(name), type(case)(**chosen))[1])
    return float(whole), float(torch.cat(halves).norm())


def micro_batch_residual() -> Row:
    """A loss that is formed per micro-batch."""
    whole, apart = split_of("gvpo")
    return Row(
        "D29",
        "GVPO's micro-batches",
        "two groups in one step: the size of the gradient as one step, and if each group were divided by its own "
        "count alone",
        (("covey `gvpo`, one step", figures(whole)), ("the sum of two groups, each as if alone", figures(apart))),
        "The published recipe sums over what a micro-batch holds, so its gradient follows the micro-batch; it is "
        "no package and was not run. `gvpo` divides by the groups of the step.",
        ran=False,
    )


def per_question_constraint() -> Row:
    """A constraint that is taken per micro-batch."""
    case = draw(7)
    binary = with_(case, reward=(case.reward > 0).double()[:, :1])
    pieces = [float((binary.old_logp - binary.logp)[binary.mask & (binary.group == g)[:, None]].mean()) for g in (0, 1)]
    whole = float((binary.old_logp - binary.logp)[binary.mask].mean())
    return Row(
        "D30",
        "DisCO's constraint",
        "the mean of log(old / policy) over tokens, which its hinge reads: of a step of two groups, and of each group",
        (("the step", figures(whole)), ("each group", figures(pieces))),
        "A hinge of these is not the hinge of their mean: `disco` and `disco_ratio` take the step. The published "
        "script takes the micro-batch, and its "
        "`disco_Lratio` ends in a TypeError as published; it is no package and was not run.",
        ran=False,
    )


def clip_shares() -> Row:
    """What is counted as clipped."""
    case = draw(7)
    info = {"global_batch_info": verl_peer.batch_info(case)}
    mask = case.mask.double()
    given = {
        "old_log_prob": case.old_logp,
        "log_prob": case.logp,
        "advantages": case.advantage[:, None] * mask,
        "response_mask": mask,
    }
    vanilla, gspo = (
        core_algos.get_policy_loss_fn(name)(**given, config=verl_peer.actor(**info))[1]["actor/pg_clipfrac"]
        for name in ("vanilla", "gspo")
    )
    cispo = core_algos.get_policy_loss_fn("cispo")(**given, config=verl_peer.actor(**info))[1]["actor/pg_clipfrac"]
    trl_shares = []
    for options, name in (
        ({}, "clip_ratio/region_mean"),
        ({"importance_sampling_level": "sequence"}, "clip_ratio/region_mean"),
        ({"loss_type": "cispo", "epsilon_high": 1.2}, "cispo_clip_ratio"),
    ):
        trl_shares.append(trl_peer.measured(GRPOTrainer, case, name, **options))
    ratio = torch.where(case.mask, (case.logp - case.old_logp).exp(), 1.0)
    outside = (((ratio < 0.8) | (ratio > 1.2)) & case.mask).sum() / case.mask.sum()
    return Row(
        "D31",
        "the clip fraction",
        "one random batch: token clip of 0.2, sequence clip of 0.2, CISPO with a bound of 1.2",
        (
            ("verl: of tokens, where the loss changed", figures((vanilla, gspo, cispo))),
            ("TRL: of tokens, of responses, of tokens with A > 0 alone", figures(trl_shares)),
            ("tokens outside of 0.8 to 1.2, whatever A", figures(float(outside))),
        ),
        "covey logs three things apart: `clip/low` and `clip/high`, where the gradient is gone, and "
        "`ratio/out_of_band`.",
    )


def clipped_through() -> Row:
    """A weight that is not detached."""
    slopes = []
    for rho in (1.0, 6.0):
        weight = torch.tensor(rho).log().requires_grad_()
        bounds = SimpleNamespace(_clip_bounds=(-torch.inf, float(torch.tensor(5.0).log())))
        loss, _ = CISPOLoss._compute_policy_objective(bounds, weight, torch.tensor(1.0))
        slopes.append(torch.autograd.grad(loss, weight)[0].item())
    ours = []
    for rho in (1.0, 6.0):
        case = tiny((1,), advantage=(1.0,), log_ratio=[[float(torch.tensor(rho).log())]])
        ours.append(loss_and_gradient(recipes.get("cispo"), case)[1].item())
    return Row(
        "D32",
        "CISPO in torchrl",
        "one token, A = 1, ratio 1 and 6, bound 5: the derivative by its log-probability",
        (
            ("torchrl 0.14.1 `CISPOLoss`: -clip(rho) A, with the gradient through the clip", figures(slopes)),
            ("covey `cispo`: -sg(clip(rho)) A log pi", figures(ours)),
        ),
        "Beyond the bound torchrl's form has no gradient, the very thing that the method is to remove. No preset "
        "imitates it.",
    )


ROWS = (
    mismatch_default, dropped_masks, contradicting_page, kept_denominator, critic_defaults, micro_batch_residual,
    per_question_constraint, clip_shares, clipped_through,
)  # fmt: skip
