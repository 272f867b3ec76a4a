"""Disagreements about the loss: denominators, clips, sequence ratios, mismatch."""

from __future__ import annotations

import torch
from trl import GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer
from verl.trainer.ppo import core_algos

from benchmarks.parity import openrlhf_peer, trl_peer, verl_peer
from benchmarks.parity.data import Case, draw, with_
from benchmarks.parity.disagreements import Row, figures, tiny
from benchmarks.parity.ours import loss_and_gradient
from covey import recipes

FOUR = ((1, 4, 2, 3), (-1.0, -2.0, -3.0, -4.0))
"""Four responses of 1, 4, 2 and 3 tokens whose loss per token is 1, 2, 3 and 4: at ratio 1 the loss of a token is -A."""


def ours(name: str, case: Case, **changes: object) -> tuple[float, torch.Tensor]:
    """covey's loss and gradient."""
    return loss_and_gradient(recipes.get(name).but(**changes), case)


def verl(name: str, case: Case, mode: str = "token-mean", **options: object) -> tuple[float, torch.Tensor]:
    """verl's loss and gradient with the counts of this batch."""
    return verl_peer.loss(
        name, case, mode, config=verl_peer.actor(global_batch_info=verl_peer.batch_info(case), **options)
    )


def part(case: Case, rows: list[int]) -> Case:
    """Some rows of a batch, as a micro-batch."""
    chosen = {name: value[rows] if isinstance(value, torch.Tensor) else value for name, value in vars(case).items()}
    return Case(**chosen)


def default_method() -> Row:
    """What the name GRPO means."""
    case = draw(7)
    paper = ours("grpo", case)[0]
    biased, straight = ({"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": flag} for flag in (True, False))
    return Row(
        "D1",
        'the default of "GRPO"',
        "one random batch of 8 responses, advantages given; the loss",
        (
            ("paper (`grpo`): mean over responses, 0.04 k3", figures(paper)),
            ("TRL, defaults (token mean, no KL)", figures(trl_peer.loss(GRPOTrainer, case)[0])),
            (
                "TRL, loss_type=grpo, beta=0.04: k3 times the ratio",
                figures(trl_peer.loss(GRPOTrainer, case, **biased)[0]),
            ),
            (
                "TRL, the same with use_bias_correction_kl=False",
                figures(trl_peer.loss(GRPOTrainer, case, **straight)[0]),
            ),
            (
                "verl, defaults (token mean, no KL, dual clip 3, which no ratio reaches here)",
                figures(verl("vanilla", case)[0]),
            ),
        ),
        "`grpo` is the paper's; `grpo@trl` and `grpo@verl` are the defaults of the peers. Only the fourth line is "
        "the paper's loss in TRL.",
    )


def token_scope() -> Row:
    """Whose tokens a token mean divides by."""
    case = tiny(FOUR[0], advantage=FOUR[1])
    steps = [part(case, [0, 2]), part(case, [1, 3])]
    trl = [trl_peer.loss(GRPOTrainer, step, per_generation=2, items=10)[0] for step in steps]
    bnpo = sum(trl_peer.loss(GRPOTrainer, step, accumulation=2, loss_type="bnpo")[0] for step in steps)
    return Row(
        "D2",
        "the scope of a token mean",
        "four responses of 1, 4, 2, 3 tokens with token losses 1, 2, 3, 4, in two optimizer steps: responses 1 "
        "and 3, then 2 and 4",
        (
            ("TRL `dapo`: the average tokens of a step of this generation", figures(trl)),
            ("verl with its counts: the step's own tokens", figures(verl("vanilla", step)[0] for step in steps)),
            ("covey `token_mean`: the step's own tokens", figures(ours("grpo@trl", step)[0] for step in steps)),
            ("TRL `bnpo`, as two micro-batches of one step (whole: 2.7)", figures(bnpo)),
            (
                "covey, one step, prompts {1, 3} and {2, 4}: `token_mean`, `group_token_mean`",
                figures(
                    ours("grpo@trl", with_(case, group=torch.tensor([0, 1, 0, 1])), weighting=w)[0]
                    for w in ("token_mean", "group_token_mean")
                ),
            ),
        ),
        "Presets take the step's own tokens; a token mean inside each prompt, as the papers of DAPO and CISPO "
        "write it, is `group_token_mean`.",
    )


def constant_divisor() -> Row:
    """What the constant of Dr.GRPO is."""
    case, wide = (tiny(FOUR[0], advantage=FOUR[1], width=width) for width in (4, 9))
    losses = torch.where(wide.mask, -wide.advantage[:, None], 0.0)
    free = core_algos.agg_loss(losses, wide.mask.double(), "seq-mean-token-sum-norm", global_batch_size=4)
    return Row(
        "D3",
        "the divisor of Dr.GRPO",
        "the four responses above, budget 4 tokens, padded to 4 and to 9",
        (
            ("verl, loss_scale_factor=4, padded to 9", figures(verl("vanilla", wide, "seq-mean-token-sum-norm")[0])),
            ("verl, loss_scale_factor left out, padded to 9", figures(float(free))),
            ("TRL `dr_grpo`, padded to 9", figures(trl_peer.loss(GRPOTrainer, wide, loss_type="dr_grpo")[0])),
            ("covey `dr_grpo`, padded to 4 and to 9", figures(ours("dr_grpo", c)[0] for c in (case, wide))),
        ),
        "`dr_grpo` and `dr_grpo@trl` divide by the budget of the run. In verl the padded width of a micro-batch "
        "stands in for it unless it is set.",
    )


def geometric_reduction() -> Row:
    """What a mean over responses means when there are micro-batches."""
    case = draw(7)
    halves = [part(case, [0, 1, 2, 3]), part(case, [4, 5, 6, 7])]
    whole = verl("geo_mean", case)[1].norm()
    split = torch.cat([verl("geo_mean", half)[1] for half in halves]).norm()
    trl = torch.cat([trl_peer.loss(GMPOTrainer, half, accumulation=2)[1] for half in halves]).norm()
    return Row(
        "D4",
        "GMPO's mean and micro-batches",
        "the gradient of 8 responses at once and as the sum of two micro-batches of 4: how much larger the second is",
        (
            ("verl `geo_mean`: the mean of each micro-batch", figures(float(split / whole))),
            (
                "TRL GMPOTrainer: divided by the accumulation",
                figures(float(trl / trl_peer.loss(GMPOTrainer, case)[1].norm())),
            ),
            ("covey: the step's responses", "1"),
        ),
        "`gmpo@verl` is the undivided batch; the factor is verl's own.",
    )


def masked_rows() -> Row:
    """Whether a response without tokens in the loss counts."""
    case = tiny((0, *FOUR[0][1:]), advantage=FOUR[1])
    losses, mask = torch.where(case.mask, -case.advantage[:, None], 0.0), case.mask.double()
    mode = "seq-mean-token-mean"
    kept = case.batch().keep
    some = kept.__class__(kept.loss, kept.statistics, case.mask.any(1))
    return Row(
        "D5",
        "responses that are masked as a whole",
        "the four responses above, the first one masked; the mean over responses of token means",
        (
            ("TRL `grpo`: it counts", figures(trl_peer.loss(GRPOTrainer, case, loss_type="grpo")[0])),
            ("verl with global counts: it counts", figures(verl("vanilla", case, mode)[0])),
            ("verl without counts: it does not", figures(float(core_algos.agg_loss(losses, mask, mode)))),
            (
                "OpenRLHF without counts: it does not",
                figures(float(openrlhf_peer.LOSS.aggregate_loss(losses, mask, False))),
            ),
            (
                "covey `rollout_mean`, all rows and only those with tokens in the denominator",
                figures((ours("grpo", case, penalties=())[0], ours_kept(case, some))),
            ),
        ),
        "All rows count unless a filter takes a row out of the denominator: masking must not make the others "
        "louder. TRL and verl's global count agree.",
    )


def ours_kept(case: Case, keep: object) -> float:
    """covey's mean over the rows that are in the denominator."""
    weight = recipes.get("grpo").weighting(case.batch().with_(keep=keep))
    return float((weight * torch.where(case.mask, -case.advantage[:, None], 0.0)).sum())


def weight_bounds() -> Row:
    """What epsilon_high bounds."""

    def slope(rho: float, which: str, **options: object) -> float:
        case = tiny((1,), advantage=(1.0,), log_ratio=[[float(torch.tensor(rho, dtype=torch.float64).log())]])
        if which == "trl":
            return float(trl_peer.loss(GRPOTrainer, case, loss_type="cispo", **options)[1][0, 0])
        return float((verl if which == "verl" else ours)("cispo", case, **options)[1][0, 0])

    rhos = (0.5, 1.0, 6.0)
    return Row(
        "D10",
        "the bound of CISPO",
        "one token, A = 1, at ratio 0.5, 1 and 6: the derivative of the loss by its log-probability",
        (
            (
                "TRL, default (epsilon_high falls back to 0.2, an absolute bound)",
                figures(slope(r, "trl") for r in rhos),
            ),
            ("TRL, epsilon_high=5", figures(slope(r, "trl", epsilon_high=5.0) for r in rhos)),
            ("verl, default (0.8 to 1.2)", figures(slope(r, "verl") for r in rhos)),
            ("verl, low 1, high 4", figures(slope(r, "verl", clip_ratio_low=1.0, clip_ratio_high=4.0) for r in rhos)),
            ("covey `cispo` (0 to 5)", figures(slope(r, "ours") for r in rhos)),
        ),
        "`cispo` bounds the weight itself, above only; `cispo@trl` and `cispo@verl` are the defaults. A bound "
        "below 1 is refused (`weight_below_one`).",
    )


def dual_clip() -> Row:
    """Whether an unlearned token has a largest loss."""
    case = tiny((1,), advantage=(-1.0,), log_ratio=[[float(torch.tensor(5.0, dtype=torch.float64).log())]])
    return Row(
        "D11",
        "the dual clip",
        "one token, A = -1, ratio 5: the loss",
        (
            ("verl `vanilla`: always on, 3", figures(verl("vanilla", case)[0])),
            ("TRL, default: off", figures(trl_peer.loss(GRPOTrainer, case)[0])),
            ("TRL, delta=3", figures(trl_peer.loss(GRPOTrainer, case, delta=3.0)[0])),
            ("OpenRLHF, default: off", figures(openrlhf_peer.loss(case)[0])),
            ("OpenRLHF, dual_clip=3", figures(openrlhf_peer.loss(case, dual_clip=3.0)[0])),
            ("covey `clip`, dual=null and dual=3", figures((ours("grpo@trl", case)[0], ours("grpo@verl", case)[0]))),
        ),
        "One option, `surrogate.dual`; absent in the papers' recipes and in `grpo@trl`, 3 in `grpo@verl`.",
    )


def sequence_weights() -> Row:
    """What a response weighs under a sequence ratio."""
    case = tiny((1, 3), advantage=(1.0, 1.0))

    def share(gradient: torch.Tensor) -> str:
        return figures(-gradient.sum(1) / -gradient.sum())

    return Row(
        "D12",
        "a sequence ratio under TRL's default loss",
        "two responses of 1 and 3 tokens at ratio 1, A = 1 both: each one's share of the gradient",
        (
            (
                "TRL, importance_sampling_level=sequence",
                share(trl_peer.loss(GRPOTrainer, case, importance_sampling_level="sequence")[1]),
            ),
            (
                "TRL, the same with loss_type=grpo",
                share(trl_peer.loss(GRPOTrainer, case, importance_sampling_level="sequence", loss_type="grpo")[1]),
            ),
            ("covey `gspo@trl`", share(ours("gspo@trl", case)[1])),
            ("covey `gspo`", share(ours("gspo", case)[1])),
        ),
        "`gspo` is the paper's mean over responses; `gspo@trl` waives `sequence_ratio_token_mean` to be TRL's default.",
    )


def sequence_mode() -> Row:
    """Which aggregation verl's GSPO follows."""
    case = tiny((1, 3), advantage=(1.0, 1.0))

    def share(gradient: torch.Tensor) -> str:
        return figures(-gradient.sum(1) / -gradient.sum())

    return Row(
        "D13",
        "the aggregation of verl's GSPO",
        "the same two responses",
        (
            ("verl 0.9.1 `gspo`, default loss_agg_mode (token-mean)", share(verl("gspo", case)[1])),
            ("verl 0.9.1 `gspo`, seq-mean-token-mean", share(verl("gspo", case, "seq-mean-token-mean")[1])),
            ("covey `gspo@verl`", share(ours("gspo@verl", case)[1])),
        ),
        "`gspo@verl` is 0.9.1's default; other versions of verl force the mean over responses here, which is `gspo`.",
    )


def sequence_mismatch() -> Row:
    """How GSPO meets a sampler that differs."""
    case = tiny((4,), advantage=(1.0,), log_ratio=0.1)
    sampled = case.old_logp - 0.2 * case.mask
    weight = (case.old_logp - sampled).exp()
    logp, mask = case.logp.clone().requires_grad_(), case.mask.double()
    inputs = {
        "old_log_prob": case.old_logp,
        "log_prob": logp,
        "advantages": mask,
        "response_mask": mask,
        "loss_agg_mode": "seq-mean-token-mean",
    }
    by_weights, _ = core_algos.get_policy_loss_fn("gspo")(**inputs, config=verl_peer.actor(), rollout_is_weights=weight)
    options = {"policy_loss_type": "gspo", "is_correction_level": "token"}
    together = openrlhf_peer.LOSS.PolicyLoss(**options)(
        case.logp, case.old_logp, mask, action_mask=mask, rollout_log_probs=sampled
    )[0]
    band = {"surrogate.low": 0.2, "surrogate.high": 0.2}
    old = tuple(ours("gspo", with_(case, old_logp=anchor), **band)[0] for anchor in (case.old_logp, sampled))
    return Row(
        "D14",
        "GSPO and a sampler that differs",
        "one response of 4 tokens, policy / old = e^0.1, old / sampler = e^0.2 on each, A = 1, clip 0.2: the loss",
        (
            ("verl: the sequence ratio times weights apart", figures(float(by_weights.detach()))),
            ("OpenRLHF: policy / sampler inside the sequence ratio, which is clipped", figures(float(together))),
            ("covey `gspo`, anchor old (no correction) and anchor sampled", figures(old)),
        ),
        "The factor stays apart: `corrections` beside anchor `old`; anchor `sampled` is OpenRLHF's form, and both "
        "at once are refused (`corrected_twice`).",
    )


def geometric_mismatch() -> Row:
    """Whether GMPO is corrected at all."""
    case = draw(7)
    half = torch.full(case.mask.shape, 0.5)
    logp, mask = case.logp.clone(), case.mask.double()
    inputs = {
        "old_log_prob": case.old_logp,
        "log_prob": logp,
        "advantages": case.advantage[:, None] * mask,
        "response_mask": mask,
    }
    weighted, _ = core_algos.get_policy_loss_fn("geo_mean")(**inputs, config=verl_peer.actor(), rollout_is_weights=half)
    trl = {
        kind: [trl_peer.loss(kind, case, use_vllm=flag, weights=half)[0] for flag in (False, True)]
        for kind in (GMPOTrainer, GRPOTrainer)
    }
    return Row(
        "D16",
        "GMPO and a sampler that differs",
        "a random batch whose importance weights are all 0.5: the loss with them over the loss without",
        (
            ("TRL GMPOTrainer: never applied", figures(trl[GMPOTrainer][1] / trl[GMPOTrainer][0])),
            ("TRL GRPOTrainer", figures(trl[GRPOTrainer][1] / trl[GRPOTrainer][0])),
            ("verl `geo_mean`", figures(float(weighted) / verl("geo_mean", case)[0])),
        ),
        "covey's corrections multiply the weights of every recipe, `gmpo` too.",
    )


ROWS = (
    default_method, token_scope, constant_divisor, geometric_reduction, masked_rows, weight_bounds, dual_clip,
    sequence_weights, sequence_mode, sequence_mismatch, geometric_mismatch,
)  # fmt: skip
