"""The engines' own code on a model without content: what sampling and a gradient need, to the byte, before any weight is read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from covey.batch import Batch, Keep
from covey.engines import experts
from covey.engines.adapters import Lora, add_adapter
from covey.engines.cache import DecodeLayout
from covey.engines.choice import choose
from covey.engines.head import LogitHead
from covey.engines.loading import DTYPES
from covey.engines.quantize import quantize_linear
from covey.engines.sampler import HFSampler, Job, Wave
from covey.engines.scorer import Scorer
from covey.hub import quiet
from covey.preflight.replay import Event, Mark, Script, replay
from covey.preflight.watch import Block, Traced, size_of, storages, watched
from covey.types import Request, Sampling

REPLAYED = (6, 12)
"""Layers of the two models from which a deeper one's gradient is extrapolated: equal layers add equal bytes."""
SAMPLED = (2, 3)
"""The same for sampling, where no layer keeps anything but its part of the cache."""
EVEN = "covey_even"
"""The name of experts that share a batch evenly: a model without content cannot route."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What decides about a model's tensors besides its configuration."""

    dtype: str = "float32"
    lora: Lora | None = None
    quantize: str | None = None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model's tensors: all of them, those that are trained, and the largest trained one."""

    weights: int
    trained: int
    largest: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Shape:
    """Rows of a forward: `groups` prompts of `prompt` tokens with `samples` responses of `response` tokens each."""

    groups: int
    samples: int
    prompt: int
    response: int

    @property
    def rows(self) -> int:
        """Responses."""
        return self.groups * self.samples

    @property
    def tokens(self) -> int:
        """Prompts, once per group, and responses."""
        return self.groups * self.prompt + self.rows * self.response


class Rehearsal:
    """Runs sampler and scorer on a model of a given configuration that has shapes and no content."""

    def __init__(self, config: Any, build: Build) -> None:
        self.config, self.build = config, build
        self._models: dict[int, nn.Module] = {}

    @property
    def layers(self) -> int:
        """The model's depth."""
        return int(self.config.get_text_config().num_hidden_layers)

    def sizes(self) -> Sizes:
        """Bytes of the whole model."""
        model = self._model(self.layers)
        trained = [size_of(p) for p in model.parameters() if p.requires_grad]
        return Sizes(
            weights=sum(storages(_tensors(model)).values()),
            trained=sum(trained),
            largest=max(trained),
            parameters=sum(p.numel() for p in model.parameters()),
        )

    def update(self, shape: Shape, *, outputs: Sequence[str], temperature: float, recompute: bool) -> Traced:
        """Forward and backward of one slice of the whole model."""
        return self._gradient(self.layers, shape, outputs, temperature, recompute)[0]

    def steps(
        self, shape: Shape, *, outputs: Sequence[str], temperature: float, recompute: bool, slices: int, moments: bool
    ) -> tuple[Mark, Block | None]:
        """The highest mark of some optimizer steps of several slices, and the largest tensor."""
        largest: list[Block | None] = []

        def run(depth: int) -> Mark:
            traced, events, kept = self._gradient(depth, shape, outputs, temperature, recompute)
            largest.append(traced.largest)
            sizes = [size_of(p) for p in self._model(depth).parameters() if p.requires_grad]
            return replay(Script(events, kept, (*sizes, *sizes) if moments else (), slices))

        return self._extrapolate(run, REPLAYED), largest[-1]

    def _gradient(
        self, depth: int, shape: Shape, outputs: Sequence[str], temperature: float, recompute: bool
    ) -> tuple[Traced, tuple[Event, ...], tuple[int, ...]]:
        scorer, rows = Scorer(self._model(depth)), make_rows(shape)
        layers = scorer.layers()
        if recompute:
            for layer in layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        try:
            with even_experts(scorer.model), watched(scorer.model) as watch:
                found = scorer(rows, outputs=tuple(outputs), temperature=temperature)
                loss = torch.stack([value.sum() for value in found.values()]).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                del found, loss
                gradients = [p.grad for p in scorer.model.parameters() if p.grad is not None]
                return watch.peak, tuple(watch.events), watch.numbers(gradients)
        finally:
            for layer in layers:
                layer.__dict__.pop("forward", None)

    def sample(self, shape: Shape, sampling: Sampling) -> Traced:
        """One wave: prompts into the cache, then the draw and the forward of the last token."""
        largest: list[Block | None] = []

        def run(depth: int) -> Mark:
            sampler = HFSampler(self._model(depth), max_rows=shape.rows)
            requests = [Request(str(at), (1,) * shape.prompt, (0,) * shape.samples) for at in range(shape.groups)]
            jobs = [Job(at, 0, shape.samples) for at in range(shape.groups)]
            with torch.no_grad(), even_experts(sampler.model), watched(sampler.model) as watch:
                wave = Wave(sampler, requests, jobs, sampling)
                logits = wave.prefill()
                choose(logits, wave.keys, 0, sampling)
                at = wave.lengths + shape.response - 1
                hidden = wave._forward(wave.token, at, DecodeLayout(wave.cache, at, int(at.max()) + 1))
                logits = LogitHead(sampler.model)(hidden)
                choose(logits, wave.keys, 0, sampling)
                largest.append(watch.peak.largest)
                return Mark(watch.peak.bytes, watch.peak.bytes, 0, 0)

        return Traced(self._extrapolate(run, SAMPLED).taken, largest[-1])

    def _extrapolate(self, run: Callable[[int], Mark], depths: tuple[int, int]) -> Mark:
        """A deep model of equal layers from two shallower ones; any other as it is."""
        shallow, deeper = depths
        if self.layers <= deeper or not _equal_layers(self.config):
            return run(self.layers)
        first, second = astuple(run(shallow)), astuple(run(deeper))
        times = (self.layers - shallow) / (deeper - shallow)
        return Mark(*(max(0, int(here + times * (there - here))) for here, there in zip(first, second, strict=True)))

    def _model(self, depth: int) -> nn.Module:
        if depth not in self._models:
            self._models[depth] = build_hollow(shallow_config(self.config, depth), self.build)
        return self._models[depth]


def build_hollow(config: Any, build: Build) -> nn.Module:
    """A model of a configuration whose tensors have shapes and no content, as `load_model` would make it."""
    with quiet(), torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=DTYPES[build.dtype])
    if build.quantize is not None:
        quantize_linear(model, build.quantize)
    if build.lora is not None:
        add_adapter(model, build.lora, seed=0)
    _settle(model)
    return model


def _settle(model: nn.Module) -> None:
    """Move tensors without content from nowhere (`meta`) to the CPU, so that code chooses what it would choose there."""
    mode, made = FakeTensorMode(allow_non_fake_inputs=True), dict[int, Tensor]()

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:  # tied weights stay tied
            with mode:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            made[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        return made[id(tensor)]

    for module in model.modules():
        state = getattr(module, "state", None)  # of weights in 4 bits: scales, and the scales' own
        own = [vars(part) for part in (state, getattr(state, "state2", None)) if part is not None]
        for store in (module._parameters, module._buffers, *own):
            store.update({name: moved(value) for name, value in store.items() if isinstance(value, Tensor)})


def shallow_config(config: Any, depth: int) -> Any:
    """The same model with fewer layers."""
    changed = copy.deepcopy(config)
    text = changed.get_text_config()
    text.num_hidden_layers = depth
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types)[:depth]
    return changed


def _equal_layers(config: Any) -> bool:
    """Whether all layers look alike, as far as a configuration tells."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ("one",))
    mixed = getattr(text, "first_k_dense_replace", 0) or getattr(text, "mlp_only_layers", None)
    return len(kinds) == 1 and not mixed


def make_rows(shape: Shape) -> Batch:
    """Rows of a shape, all of whose response tokens are predicted."""
    n, width = shape.rows, shape.response
    zeros = torch.zeros(n, width)
    ids = torch.zeros(n, width, dtype=torch.long)
    ones = torch.ones(n, dtype=torch.long)
    return Batch(
        prompts=dict.fromkeys(range(shape.groups), (1,) * shape.prompt),
        tokens=ids,
        mask=torch.ones(n, width, dtype=torch.bool),
        sampled_logp=zeros,
        old_logp=zeros,
        turn=ids,
        version=ids,
        length=ones * width,
        group=torch.arange(shape.groups).repeat_interleave(shape.samples),
        rollout=torch.arange(n),
        stop=ones,
        limit=ones * width,
        reward=torch.zeros(n, 1),
        reward_names=("reward",),
        reward_weights=(1.0,),
        keep=Keep.all(n),
    )


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def mix_evenly(module: nn.Module, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """As `covey.engines.experts.mix_experts`, in two halves of equal size: the same numbers of rows, without routing."""
    part: Any = module
    rows = chosen.numel()
    out = torch.zeros_like(hidden)
    for expert, count in ((0, rows // 2), (1, rows - rows // 2)):
        token = torch.zeros(count, dtype=torch.long)
        inner = nn.functional.linear(hidden.index_select(0, token), part.gate_up_proj[expert])
        result = nn.functional.linear(part._apply_gate(inner), part.down_proj[expert])
        result = result * weights.flatten()[:count, None]
        out = out.index_add(0, token, result.to(out.dtype))
    return out


ALL_EXPERTS_FUNCTIONS.register(EVEN, mix_evenly)


def even_experts(model: nn.Module) -> AbstractContextManager[None]:
    """Share tokens evenly where covey's own experts would look at the routing."""
    config: Any = model.config
    ours = getattr(config, "_experts_implementation", None) == experts.NAME
    return experts.borrowed_experts(model, EVEN) if ours else nullcontext()
