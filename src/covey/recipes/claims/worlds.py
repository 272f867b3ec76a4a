"""Worlds small enough to be judged exactly: policies of a few parameters, their prompts and what is right."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor


class World:
    """Prompts, a policy and a reward. `parameters` are the policy's; tokens are drawn one after the other.

    A world with a `stop` token ends a response there; others fill `limit` tokens.
    """

    prompts: int
    limit: int
    words: int
    stop: int | None = None
    rewards: tuple[str, ...] = ("right",)
    parameters: list[Tensor]

    def logits(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """Logits [N T V] of each token, given the prompts [N] and the tokens [N T] before it."""
        raise NotImplementedError

    def reward(self, prompt: Tensor, tokens: Tensor, length: Tensor, draw: torch.Generator) -> Tensor:
        """Rewards [N K]."""
        raise NotImplementedError

    def facts(self) -> Mapping[str, float]:
        """Exact numbers of the policy as it is."""
        raise NotImplementedError

    def fresh(self) -> list[Tensor]:
        """The parameters' values, to keep."""
        return [parameter.detach().clone() for parameter in self.parameters]

    def sample(self, prompt: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens [N T] and mask [N T] of one response per row."""
        tokens = torch.zeros(len(prompt), self.limit, dtype=torch.long)
        noise = torch.rand(len(prompt), self.limit, self.words, generator=draw, dtype=torch.float64)
        gumbel = -torch.log(-torch.log(noise.clamp(1e-12, 1 - 1e-12)))
        with torch.no_grad():
            for at in range(self.limit):
                tokens[:, at] = (self.logits(prompt, tokens)[:, at] + gumbel[:, at]).argmax(-1)
        if self.stop is None:
            return tokens, torch.ones_like(tokens, dtype=torch.bool)
        ended = (tokens == self.stop).long().cumsum(1) - (tokens == self.stop).long()
        return tokens, ended == 0


class Phrases(World):
    """Three words in a row, each drawn given the place and the word before; at each place half of six words are right.

    Many phrases are right, so that a policy may be right and undecided: success and entropy are apart.
    """

    prompts, limit, words = 8, 3, 6

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(1000 + seed)
        shape = (self.prompts, self.limit, self.words + 1, self.words)
        self.parameters = [torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()]
        order = torch.rand(self.prompts, self.limit, self.words, generator=draw).argsort(-1)
        self.right = order < self.words // 2
        self.phrases = torch.tensor(list(product(range(self.words), repeat=self.limit)))

    def logits(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """By prompt, place and the word before."""
        before = torch.cat([torch.full((len(tokens), 1), self.words), tokens[:, :-1]], 1)
        return self.parameters[0][prompt[:, None], torch.arange(self.limit)[None], before]

    def good(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """Which rows are right at every place."""
        return self.right[prompt[:, None], torch.arange(self.limit)[None], tokens].all(1)

    def reward(self, prompt: Tensor, tokens: Tensor, length: Tensor, draw: torch.Generator) -> Tensor:
        """1 for a phrase that is right everywhere."""
        return self.good(prompt, tokens).double()[:, None]

    def facts(self) -> Mapping[str, float]:
        """Success, and entropy in nats per word, over all phrases."""
        prompt = torch.arange(self.prompts).repeat_interleave(len(self.phrases))
        tokens = self.phrases.repeat(self.prompts, 1)
        with torch.no_grad():
            logp = self.logits(prompt, tokens).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1).sum(1)
        chance = logp.exp()
        right = (chance * self.good(prompt, tokens)).reshape(self.prompts, -1).sum(1)
        entropy = -float((chance * logp).sum()) / self.prompts / self.limit
        return {"success": float(right.mean()), "pass4": float((1 - (1 - right) ** 4).mean()), "entropy": entropy}


class Filler(World):
    """A response of useful words and filler, ended by a stop token; the three logits of a prompt hold at every place.

    Right with probability 1 - exp(-useful / 8). The reward is length-aware: +1 falling to +0.5 at the limit if right, -1 rising
    to -0.5 if wrong. `graded` gives the chance of being right in place of its outcome.
    """

    prompts, limit, words, stop = 8, 48, 3, 2
    need = 8.0

    def __init__(self, seed: int, *, aware: bool = True) -> None:
        start = torch.tensor([0.5, 0.5, 1 / 15]).double().log()  # a stop at every 16th word, half of the others filler
        self.aware = aware
        self.parameters = [start.repeat(self.prompts, 1).requires_grad_()]

    def logits(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """By prompt alone."""
        return self.parameters[0][prompt][:, None].expand(-1, self.limit, -1)

    def sample(self, prompt: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """All places at once: none depends on the words before."""
        with torch.no_grad():
            chance = self.parameters[0].softmax(-1)[prompt]
        tokens = torch.multinomial(chance, self.limit, replacement=True, generator=draw)
        ended = (tokens == self.stop).long().cumsum(1) - (tokens == self.stop).long()
        return tokens, ended == 0

    def reward(self, prompt: Tensor, tokens: Tensor, length: Tensor, draw: torch.Generator) -> Tensor:
        """Length-aware accuracy in [-1, 1], or plain accuracy in {0, 1}."""
        useful = ((tokens == 0) & (torch.arange(self.limit)[None] < length[:, None])).sum(1)
        right = torch.rand(len(prompt), generator=draw, dtype=torch.float64) < 1 - torch.exp(-useful / self.need)
        if not self.aware:
            return right.double()[:, None]
        worn = 0.5 * length.double() / self.limit
        return torch.where(right, 1 - worn, worn - 1)[:, None]

    def facts(self) -> Mapping[str, float]:
        """Accuracy, mean length of all and of right answers up to the limit, in closed form; the share of filler among words."""
        with torch.no_grad():
            p = self.parameters[0].softmax(-1)
        useful, filler, stop = p[:, 0], p[:, 1], p[:, 2]
        decay = (
            useful * torch.exp(torch.tensor(-1 / self.need)) + filler
        )  # E exp(-useful / need) of a word, and no stop
        go, n = useful + filler, self.limit
        wrong = stop * (1 - decay**n) / (1 - decay) + decay**n
        length, at = (1 - go**n) / stop, torch.arange(n, dtype=torch.float64)[:, None]
        wrong_length = stop * ((at + 1) * decay**at).sum(0) + n * decay**n  # E of the length where wrong, 0 where right
        return {
            "success": float((1 - wrong).mean()),
            "length": float(length.mean()),
            "right length": float((length - wrong_length).sum() / (1 - wrong).sum()),
            "filler": float((filler / go).mean()),
        }


class Addition(World):
    """Sums of two digits, answered by a tens and a units digit; a small network that shares everything between prompts."""

    prompts, limit, words = 100, 2, 10

    def __init__(self, seed: int, width: int = 32) -> None:
        draw = torch.Generator().manual_seed(2000 + seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(shape, generator=draw, dtype=torch.float64)).requires_grad_()

        self.parameters = [
            normal(2, 10, width),
            normal(width, width, scale=width**-0.5),
            normal(self.limit, width, self.words, scale=0.1),
        ]
        pair = torch.arange(self.prompts)
        self.digits, total = torch.stack([pair // 10, pair % 10], 1), pair // 10 + pair % 10
        self.answer = torch.stack([total // 10, total % 10], 1)

    def logits(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """Both digits from one hidden layer over the sum of the embeddings."""
        embedding, inner, heads = self.parameters
        digits = self.digits[prompt]
        hidden = torch.tanh(torch.tanh(embedding[0][digits[:, 0]] + embedding[1][digits[:, 1]]) @ inner)
        return torch.einsum("nh,thv->ntv", hidden, heads)

    def reward(self, prompt: Tensor, tokens: Tensor, length: Tensor, draw: torch.Generator) -> Tensor:
        """The share of digits that are right."""
        return (tokens == self.answer[prompt]).double().mean(1)[:, None]

    def facts(self) -> Mapping[str, float]:
        """The expected reward, and entropy in nats per digit."""
        every = torch.arange(self.prompts)
        with torch.no_grad():
            logp = self.logits(every, self.answer).log_softmax(-1)
        chance = logp.exp()
        hit = chance.gather(-1, self.answer[..., None]).squeeze(-1)
        return {"success": float(hit.mean()), "entropy": -float((chance * logp).sum(-1).mean())}


class Lessons(World):
    """A linear policy on 24 features taught by a teacher of the same form; few prompts are trained, others held out."""

    prompts, limit, words, held = 8, 1, 16, 256

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(3000 + seed)
        self.features = torch.randn(self.prompts + self.held, 24, generator=draw, dtype=torch.float64)
        teacher = torch.randn(24, self.words, generator=draw, dtype=torch.float64)
        self.answer = (self.features @ teacher).argmax(-1)
        self.parameters = [(0.15 * teacher).requires_grad_()]  # knows a little of it: right about a fifth of the time

    def logits(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """Linear in the prompt's features."""
        return (self.features[prompt] @ self.parameters[0])[:, None]

    def reward(self, prompt: Tensor, tokens: Tensor, length: Tensor, draw: torch.Generator) -> Tensor:
        """1 for the teacher's answer."""
        return (tokens[:, 0] == self.answer[prompt]).double()[:, None]

    def facts(self) -> Mapping[str, float]:
        """Success on the trained prompts, and on those held out."""
        every = torch.arange(self.prompts + self.held)
        with torch.no_grad():
            chance = self.logits(every, every[:, None])[:, 0].softmax(-1)
        hit = chance.gather(-1, self.answer[:, None]).squeeze(-1)
        train, held = float(hit[: self.prompts].mean()), float(hit[self.prompts :].mean())
        return {"success": train, "held": held, "gap": held - train}


class Arms(World):
    """One choice per prompt. `start` gives each prompt's probabilities [P V], `worth` the rewards [P V K] of its arms."""

    limit = 1

    def __init__(self, start: Tensor, worth: Tensor, rewards: tuple[str, ...] = ("right",)) -> None:
        self.prompts, self.words = start.shape
        self.parameters, self.worth, self.rewards = [start.double().log().requires_grad_()], worth.double(), rewards

    def logits(self, prompt: Tensor, tokens: Tensor) -> Tensor:
        """By prompt."""
        return self.parameters[0][prompt][:, None]

    def reward(self, prompt: Tensor, tokens: Tensor, length: Tensor, draw: torch.Generator) -> Tensor:
        """What the arm is worth."""
        return self.worth[prompt, tokens[:, 0]]

    def facts(self) -> Mapping[str, float]:
        """Each reward's expectation over prompts by name, each prompt's first one, and entropy."""
        with torch.no_grad():
            logp = self.parameters[0].log_softmax(-1)
        each = (logp.exp()[..., None] * self.worth).sum(1)
        out = dict(zip(self.rewards, each.mean(0).tolist(), strict=True))
        out |= {f"prompt{i}": value for i, value in enumerate(each[:, 0].tolist())} | {"least": min(out.values())}
        return {"success": out[self.rewards[0]], **out, "entropy": -float((logp.exp() * logp).sum(-1).mean())}
