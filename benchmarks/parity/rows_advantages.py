"""Disagreements about advantages: what is added to a std, what is whitened, where the KL goes."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo import core_algos

from benchmarks.parity import openrlhf_peer, trl_peer, verl_peer
from benchmarks.parity.data import Case, draw, with_
from benchmarks.parity.disagreements import Row, figures, first, tiny
from benchmarks.parity.ours import advantage, loss_and_gradient
from covey import recipes
from covey.stages.shapers import Whiten

BINARY = ((1.0, 0.0, 0.0, 0.0), (1.0, 1.0, 1.0, 0.0))
"""Rewards of two prompts with four responses each."""
LENGTHS = (2, 4, 6, 8)


def two_groups(lengths: tuple[int, ...] = LENGTHS) -> Case:
    """The two prompts, with responses of 2, 4, 6 and 8 tokens in both."""
    return tiny(lengths * 2, reward=[[r] for group in BINARY for r in group], groups=2)


def ours(name: str, case: Case, **changes: object) -> Tensor:
    """covey's advantage of each row's first token."""
    return first(advantage(recipes.get(name).but(**changes), case))


def small_spread() -> Row:
    """What is added to a std matters where it is small."""
    case = tiny((1,) * 4, reward=[[0.5], [0.501], [0.499], [0.5]])
    return Row(
        "D6",
        "what is added to the std",
        "four responses with rewards 0.5, 0.501, 0.499, 0.5: the advantage of the second",
        (
            ("TRL (1e-4)", figures(first(trl_peer.estimate(GRPOTrainer, case, beta=0.0))[1].item())),
            ("verl (1e-6)", figures(first(verl_peer.estimate("grpo", case))[1].item())),
            ("OpenRLHF (1e-9)", figures(first(openrlhf_peer.estimate("group_norm", case))[1].item())),
            (
                "covey, eps 1e-4, 1e-6, 1e-9",
                figures(ours("grpo", case, **{"advantage.eps": eps})[1].item() for eps in (1e-4, 1e-6, 1e-9)),
            ),
        ),
        "1e-6, as verl; `@trl` presets add 1e-4, `@openrlhf` presets 1e-9. With rewards of 0 and 1 the difference "
        "is below 0.03 %.",
    )


def degrees_of_freedom() -> Row:
    """Unbiased or population variance."""
    case, four = two_groups(), tiny((1,) * 4, reward=[[r] for r in BINARY[0]])
    config = AlgoConfig(gamma=1.0)
    whole = {"mix": "weighted_sum", "advantage": "return_to_go"}
    return Row(
        "D7",
        "the variance: unbiased or of the population",
        "a group with rewards 1, 0, 0, 0: the advantage of the first; and the first token of two such prompts "
        "whitened over the batch",
        (
            (
                "TRL, verl, OpenRLHF in the group",
                figures(
                    float(first(t)[0])
                    for t in (
                        trl_peer.estimate(GRPOTrainer, four, beta=0.0),
                        verl_peer.estimate("grpo", four),
                        openrlhf_peer.estimate("group_norm", four),
                    )
                ),
            ),
            (
                "covey, ddof=1 and ddof=0 in the group",
                figures(float(ours("grpo", four, **{"advantage.ddof": d})[0]) for d in (1, 0)),
            ),
            (
                "verl `reinforce_plus_plus` over the batch (unbiased)",
                figures(float(first(verl_peer.estimate("reinforce_plus_plus", case, config=config))[0])),
            ),
            (
                "OpenRLHF `reinforce` over the batch (population)",
                figures(float(first(openrlhf_peer.estimate("reinforce", case))[0])),
            ),
            (
                "covey `whiten`, unit=token, ddof=1 and ddof=0",
                figures(
                    float(ours("grpo", case, penalties=(), shapers=(Whiten(unit="token", ddof=d),), **whole)[0])
                    for d in (1, 0)
                ),
            ),
        ),
        "Unbiased everywhere, except in `@openrlhf` presets where they whiten.",
    )


def whitening_unit() -> Row:
    """Tokens or responses."""
    case, config = two_groups(), AlgoConfig(gamma=1.0)
    whole = {"mix": "weighted_sum", "advantage": "return_to_go", "penalties": ()}
    return Row(
        "D8",
        "the unit of whitening",
        "two prompts, rewards 1, 0, 0, 0 and 1, 1, 1, 0, lengths 2, 4, 6, 8: the whitened advantage of reward 1 "
        "and of reward 0",
        (
            (
                "verl `reinforce_plus_plus`: tokens",
                figures(first(verl_peer.estimate("reinforce_plus_plus", case, config=config))[:2]),
            ),
            ("OpenRLHF `reinforce`: tokens", figures(first(openrlhf_peer.estimate("reinforce", case))[:2])),
            ("covey `whiten`, unit=token", figures(ours("grpo", case, shapers=(Whiten(unit="token"),), **whole)[:2])),
            (
                "covey `whiten`, unit=rollout",
                figures(ours("grpo", case, shapers=(Whiten(unit="rollout"),), **whole)[:2]),
            ),
        ),
        "Per response where the reward is one number per response; per token beside a KL or a critic per token, "
        "and in the `@verl` and `@openrlhf` presets.",
    )


def batch_std() -> Row:
    """Of what the batch's std is."""
    case = two_groups()
    return Row(
        "D9",
        'the "batch std"',
        "the same rewards: the advantages of the first two responses of the first prompt",
        (
            (
                "TRL scale_rewards=batch: std of the raw rewards",
                figures(first(trl_peer.estimate(GRPOTrainer, case, beta=0.0, scale_rewards="batch"))[:2]),
            ),
            (
                "covey, scale=batch, eps 1e-4",
                figures(ours("grpo", case, **{"advantage.scale": "batch", "advantage.eps": 1e-4})[:2]),
            ),
            (
                "covey, scale=batch_centered: of rewards less their prompt's mean",
                figures(ours("grpo", case, **{"advantage.scale": "batch_centered"})[:2]),
            ),
        ),
        "`lite_ppo` takes the raw rewards' std, as TRL does. ROLL has both forms; it could not be run here.",
    )


def three_leave_one_outs() -> Row:
    """Three estimators under one name."""
    case = draw(7, hole=0.0)
    parts = {
        "TRL: KL summed into the reward (0.05), inside the baseline; ratio of whole responses": trl_peer.estimate(
            RLOOTrainer, case
        ),
        "verl: no KL; token ratios": verl_peer.estimate("rloo", case),
        "OpenRLHF: KL per token from there on (0.01), after the baseline; token ratios": openrlhf_peer.estimate(
            "rloo", case, 0.01
        ),
    }
    mine = {
        f"covey `rloo@{peer}`": advantage(recipes.get(f"rloo@{peer}"), case) for peer in ("trl", "verl", "openrlhf")
    }
    return Row(
        "D18",
        "RLOO",
        "one random batch with a reference: the advantages of the first response's first three tokens",
        tuple((who, figures(values[0, :3])) for who, values in {**parts, **mine}.items()),
        "`rloo` is the paper's: KL inside the baseline, the whole response as one action, no clip. Each peer's "
        "form is a preset.",
    )


def several_turns() -> Row:
    """Whether a tool's token cuts a return."""
    mask = torch.tensor([[True, True, False, False, True, True]])
    case = with_(tiny((6,), reward=[[1.0]]), mask=mask, value=torch.full((1, 6), 0.5, dtype=torch.float64))
    rewards, config = verl_peer.token_rewards(case), AlgoConfig(gamma=1.0)
    inputs = {"token_level_rewards": rewards, "response_mask": mask.double()}
    _, verl = core_algos.get_adv_estimator_fn("reinforce_plus_plus")(**inputs, config=config)
    _, learned = core_algos.get_adv_estimator_fn("gae")(**inputs, values=case.value, gamma=1.0, lam=0.5)
    maker = openrlhf_peer.MAKER.RemoteExperienceMaker
    openrlhf = maker.get_cumulative_returns(SimpleNamespace(), rewards, mask, 1.0)
    theirs, _ = maker.get_advantages_and_returns(SimpleNamespace(), case.value, rewards, mask, 1.0, 0.5)
    whole = recipes.get("grpo").but(advantage="return_to_go", penalties=())
    critic = recipes.get("ppo@verl").but(shapers=(), **{"advantage.lam": 0.5})
    return Row(
        "D19",
        "returns across a tool's tokens",
        "one response with mask 1 1 0 0 1 1 and reward 1 at its end, values 0.5: the policy's tokens",
        (
            ("verl 0.9.1 `reinforce_plus_plus`, returns", figures(verl[mask])),
            ("OpenRLHF `reinforce`, returns", figures(openrlhf[mask])),
            ("covey `return_to_go`", figures(advantage(whole, case)[mask])),
            ("verl 0.9.1 `gae`, lam 0.5, before whitening", figures((learned - case.value)[mask])),
            ("OpenRLHF `gae`, lam 0.5", figures(theirs[mask])),
            ("covey `gae`, lam 0.5", figures(advantage(critic, case)[mask])),
        ),
        "All three carry returns across (older verl set them to 0 before a tool's tokens). With lam below 1 OpenRLHF's "
        "recursion takes each of the tool's tokens for a step of its own with value 0; verl and covey pass over them.",
    )


def straight_through() -> Row:
    """The estimator with a plus."""
    logp = torch.tensor([[-1.0]], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([[-1.5]], dtype=torch.float64)
    shown = []
    for name in ("k2", "k3", "k3+"):
        value = core_algos.kl_penalty(logp, ref, name)
        shown.append(
            (
                f"verl `{name}`: value, gradient",
                figures((value.item(), torch.autograd.grad(value.sum(), logp)[0].item())),
            )
        )
    for name in ("k2", "k3", "k3_straight_through"):
        case = with_(tiny((1,)), ref_logp=ref)
        penalty = {"kind": "kl", "coef": 1.0, "estimator": name}
        value, slope = loss_and_gradient(recipes.get("grpo").but(penalties=[penalty]), case)
        shown.append((f"covey `{name}`: value, gradient", figures((value, slope.item()))))
    return Row(
        "D20",
        "k3 with the gradient of k2",
        "one token, log(policy / reference) = 0.5",
        tuple(shown),
        "`k3_straight_through` is verl's `k3+` and `low_var_kl+`, which work since 0.9.1. As a loss, k3 alone "
        "pulls along the forward KL.",
    )


def corrected_kl() -> Row:
    """With which ratio k3 is corrected."""
    base = tiny((2,), log_ratio=[[0.4, -0.2]])
    case = with_(base, ref_logp=base.logp - torch.tensor([[0.5, -0.5]], dtype=torch.float64))
    penalty = {"kind": "kl", "coef": 1.0, "estimator": "k3_importance"}

    def slopes(level: str) -> Tensor:
        return trl_peer.loss(GRPOTrainer, case, beta=1.0, importance_sampling_level=level)[1][0]

    return Row(
        "D21",
        "the ratio that corrects k3",
        "two tokens with ratios e^0.4 and e^-0.2, A = 0, log(policy / reference) 0.5 and -0.5: the gradient of "
        "the KL by each log-probability",
        (
            ("TRL, token level", figures(slopes("token"))),
            ("TRL, sequence level: both tokens take the ratio of the response", figures(slopes("sequence"))),
            (
                "covey `k3_importance`, ratio token",
                figures(loss_and_gradient(recipes.get("grpo@trl").but(penalties=[penalty]), case)[1][0]),
            ),
            (
                "covey `k3_importance`, ratio sequence",
                figures(loss_and_gradient(recipes.get("gspo@trl").but(penalties=[penalty]), case)[1][0]),
            ),
        ),
        "Always the token's ratio: with the response's the correction is not unbiased. TRL corrects by default "
        "since 1.16.",
    )


def decoupled() -> Row:
    """The last step of GDPO."""
    pairs = [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]
    case = tiny(LENGTHS * 2, reward=pairs, groups=2)
    single = with_(case, reward=case.reward[:, :1])
    return Row(
        "D22",
        "the batch step of GDPO",
        "two prompts, two reward components, lengths 2, 4, 6, 8: the advantages of the first prompt",
        (
            (
                "TRL normalize_then_sum: per response",
                figures(
                    first(
                        trl_peer.estimate(GRPOTrainer, case, beta=0.0, multi_objective_aggregation="normalize_then_sum")
                    )[:4]
                ),
            ),
            (
                "verl `gdpo`: per token",
                figures(first(verl_peer.estimate("gdpo", case, **verl_peer.components(case)))[:4], 5),
            ),
            (
                "covey `gdpo@trl`, `gdpo@verl`",
                figures(ours("gdpo@trl", case)[:4]) + "; " + figures(ours("gdpo@verl", case)[:4]),
            ),
            (
                "TRL, one component alone: scaled over the batch too",
                figures(
                    first(
                        trl_peer.estimate(
                            GRPOTrainer, single, beta=0.0, multi_objective_aggregation="normalize_then_sum"
                        )
                    )[:2]
                ),
            ),
        ),
        "`gdpo` scales per response. verl takes the components straight from the reward function: a KL in the "
        "reward or an overlong term is lost.",
    )


ROWS = (
    small_spread, degrees_of_freedom, whitening_unit, batch_std, three_leave_one_outs, several_turns, straight_through,
    corrected_kl, decoupled,
)  # fmt: skip
