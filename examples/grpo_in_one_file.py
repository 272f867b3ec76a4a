"""GRPO (arXiv 2402.03300) in one file of plain PyTorch: sample groups, compare inside each, clip, stay near the reference.

The policy reads three digits and learns to say them in ascending order and stop. `advantage` and `loss` are the whole method;
they equal `covey.functional` with the recipe `grpo` to rounding, which a test of covey checks. Ten seconds on one CPU core.
"""

import copy

import torch
from torch import Tensor, nn

DIGITS, LENGTH = 5, 3
END, BEGIN = DIGITS, DIGITS + 1
MOST = LENGTH + 2  # tokens of a response: more than a right one needs, so that stopping has to be learnt

# The method


def advantage(reward: Tensor, group: Tensor, mask: Tensor, eps: float = 1e-6) -> Tensor:
    """A = (R - mean of its group) / (std of its group + eps), the same on every token [N T]; 0 where all are equal."""
    out = torch.zeros_like(reward)
    for name in group.unique():
        rows = group == name
        scores = reward[rows]
        if len(scores) > 1 and scores.max() > scores.min():
            out[rows] = (scores - scores.mean()) / (scores.std(correction=1) + eps)
    return torch.where(mask, out[:, None], 0.0)


def loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor,
    advantage: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    beta: float = 0.04,
) -> Tensor:
    """Mean over responses of the mean over tokens of -min(rho A, clip(rho) A) + beta * k3; masked before exp."""
    ratio = torch.where(mask, logp - old_logp, 0.0).clamp(-20, 20).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    gap = torch.where(mask, ref_logp - logp, 0.0).clamp(-20, 20)
    k3 = torch.where(mask, gap.expm1() - gap, 0.0)  # never negative, unbiased for KL(policy, reference)
    length = mask.sum(1)
    per_response = (beta * k3 - torch.where(mask, gain, 0.0)).sum(1) / length.clamp(min=1)
    return per_response.mean()


# What it is tried on


class Policy(nn.Module):
    """A recurrent network over the prompt's digits and what was said so far."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.embed, self.recur = nn.Embedding(BEGIN + 1, width), nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, DIGITS + 1)

    def logp(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """log pi of each response token [N T]."""
        said = torch.cat([prompt, torch.full_like(prompt[:, :1], BEGIN), tokens[:, :-1]], 1)
        hidden = self.recur(self.embed(said))[0][:, LENGTH:]
        return self.head(hidden).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)

    @torch.no_grad()
    def sample(self, prompt: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens [N T] and the mask of those up to the end token."""
        word = torch.full_like(prompt[:, :1], BEGIN)
        state, tokens = self.recur(self.embed(prompt))[1], []
        for _ in range(MOST):
            hidden, state = self.recur(self.embed(word), state)
            word = torch.multinomial(self.head(hidden[:, 0]).softmax(-1), 1, generator=draw)
            tokens.append(word)
        out = torch.cat(tokens, 1)
        before = (out == END).cumsum(1) - (out == END).long()  # end tokens that stand before this one
        return torch.where(before == 0, out, END), before == 0


def score(prompt: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """The share of right tokens among those of the right answer; 0 for a response of another length [N]."""
    answer = torch.cat([prompt.sort(1).values, torch.full_like(prompt[:, :1], END)], 1)
    right = (tokens[:, : LENGTH + 1] == answer).double().mean(1)
    return torch.where(mask.sum(1) == LENGTH + 1, right, 0.0)


def train(
    steps: int = 150, prompts: int = 16, samples: int = 16, passes: int = 2, lr: float = 4e-3, seed: int = 0
) -> list[float]:
    """The mean reward of each step."""
    torch.manual_seed(seed)
    draw, policy = torch.Generator().manual_seed(seed), Policy()
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    curve = []
    for _ in range(steps):
        prompt = torch.randint(DIGITS, (prompts, LENGTH), generator=draw).repeat_interleave(samples, 0)
        group = torch.arange(prompts).repeat_interleave(samples)
        tokens, mask = policy.sample(prompt, draw)
        reward = score(prompt, tokens, mask)
        worth = advantage(reward, group, mask).float()
        with torch.no_grad():
            old, ref = policy.logp(prompt, tokens), reference.logp(prompt, tokens)
        for _ in range(passes):
            optimizer.zero_grad()
            loss(policy.logp(prompt, tokens), old, ref, worth, mask).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
        curve.append(float(reward.mean()))
    return curve


if __name__ == "__main__":
    for step, reward in enumerate(train()):
        if step % 10 == 9:
            print(f"step {step + 1:4d}  reward {reward:.3f}")
