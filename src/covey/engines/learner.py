"""The learner on torch: one code path for one process and for FSDP2 over many, gradients summed slice by slice."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from covey.batch import Batch, Credited, Live
from covey.engines.adapters import is_adapted
from covey.engines.slices import Plan, cheapest_row, cut, is_token_level, plan_slices
from covey.engines.world import World
from covey.metrics import Metrics, highest, merge, total
from covey.protocols import Objective


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """AdamW (arXiv 1711.05101). Weight decay acts on parameters of two and more dimensions: norms and biases have none.

    `max_grad_norm` bounds the norm of the whole gradient; `math.inf` leaves it alone.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


class SlicedScorer:
    """Scores rows slice by slice without ever holding more than a token budget; over several ranks its parameters are sharded.

    `scorer(rows, outputs=..., temperature=...)` gives `logp` [N T] and the named outputs; its `model` is the transformers model.
    All ranks call every method together, each with rows of its own; a rank with fewer slices than another repeats a cheap one.
    """

    def __init__(
        self, scorer: nn.Module, *, world: World, tokens_per_slice: int, gradient_checkpointing: bool = False
    ) -> None:
        self.scorer, self.world, self.tokens_per_slice = scorer.to(world.device).eval(), world, tokens_per_slice
        self.gradient_checkpointing = gradient_checkpointing
        layers = decoder_layers(scorer)
        if gradient_checkpointing:
            for layer in layers:
                recompute = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
                layer.forward = recompute
        if world.size > 1:
            shard(scorer, layers, world)

    def forward(
        self, batch: Batch, outputs: Sequence[str] = (), temperature: float = 1.0, *, idle: bool = False
    ) -> Live:
        """Log-probabilities and outputs without gradient, rows in the order of `batch`, zeros in the padding.

        `idle`: the batch only keeps this rank in step with the others; its values mean nothing.
        """
        made: dict[str, Tensor] = {}
        plan, _ = plan_slices(batch, self.tokens_per_slice)
        with torch.no_grad():
            for rows, real in self._rounds([] if idle else plan, batch):
                found = self._live(cut(batch, rows, self.world.device), outputs, temperature)
                if real or idle:
                    _place(found, torch.tensor(rows), batch, made)
        if isinstance(self.scorer, FSDPModule):
            self.scorer.reshard()  # the root stays gathered after a forward; weights may change before the next one
        return Live.of(made)

    def _live(self, rows: Batch, outputs: Sequence[str], temperature: float) -> dict[str, Tensor]:
        return dict(self.scorer(rows, outputs=tuple(outputs), temperature=temperature))

    def _rounds(self, plan: Plan, batch: Batch) -> Iterator[tuple[list[int], bool]]:
        """The slices, then as many repetitions of a cheap row as the busiest rank has more."""
        most = self.world.highest(len(plan))
        yield from ((rows, True) for rows in plan)
        yield from [(cheapest_row(batch), False)] * (most - len(plan))


def _place(found: Mapping[str, Tensor], rows: Tensor, batch: Batch, made: dict[str, Tensor]) -> None:
    """Write a slice's outputs into those of the whole batch."""
    n, width = batch.tokens.shape
    for name, value in found.items():
        wide = is_token_level(name, value)
        if name not in made:
            made[name] = value.new_zeros((n, width, *value.shape[2:]) if wide else (n, *value.shape[1:]), device="cpu")
        if wide:
            made[name][rows, : value.shape[1]] = value.detach().cpu()
        else:
            made[name][rows] = value.detach().cpu()


class TorchLearner(SlicedScorer):
    """Owns the trained weights and their optimizer. How rows are split over slices and ranks cannot change a gradient."""

    def __init__(
        self,
        scorer: nn.Module,
        *,
        world: World,
        tokens_per_slice: int,
        optimizer: OptimizerOptions | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__(
            scorer, world=world, tokens_per_slice=tokens_per_slice, gradient_checkpointing=gradient_checkpointing
        )
        trained = {name: p for name, p in inner(scorer).named_parameters() if p.requires_grad}
        self.adopt(trained, optimizer or OptimizerOptions())

    def adopt(self, parameters: Mapping[str, nn.Parameter], options: OptimizerOptions) -> None:
        """Make these parameters the trained ones, with a fresh optimizer."""
        self.parameters, self.options = dict(parameters), options
        decayed = [p for p in self.parameters.values() if p.ndim >= 2]
        plain = [p for p in self.parameters.values() if p.ndim < 2]
        groups = [
            {"params": decayed, "weight_decay": self.options.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=0.0, betas=self.options.betas, eps=self.options.eps
        )

    def backward(
        self,
        batch: Credited,
        objective: Objective,
        outputs: Sequence[str] = (),
        temperature: float = 1.0,
        *,
        idle: bool = False,
    ) -> Metrics:
        """Add the gradient of the objective, slice by slice, and return its metrics over this rank's slices.

        `idle`: as in `forward`; nothing is added.
        """
        reports: list[Metrics] = []
        plan, _ = plan_slices(batch, self.tokens_per_slice)
        for rows, real in self._rounds([] if idle else plan, batch):
            part = cut(batch, rows, self.world.device)
            found = self._live(part, outputs, temperature)
            if real:
                loss, metrics = objective(Live.of(found), part)
                reports.append(metrics)
            else:
                loss = torch.stack([0.0 * value.sum() for value in found.values() if value.requires_grad]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
        return merge(reports)

    def step(self, lr: float) -> Metrics:
        """Clip the gradient to `max_grad_norm`, apply it at learning rate `lr`, and clear it.

        A gradient with a number that is not finite changes nothing: neither weights nor optimizer. `grad/skipped` counts it,
        and `grad/norm` is the norm before clipping.
        """
        grads = [self._gradient(p) for p in self.parameters.values()]
        squares = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float64).square() for g in grads]).sum()
        norm = math.sqrt(self.world.sum([float(squares)])[0])
        finite = math.isfinite(norm)
        if finite:
            if norm > self.options.max_grad_norm:
                torch._foreach_mul_(grads, self.options.max_grad_norm / norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
        self.clear()
        return {"grad/norm": highest(norm), "grad/skipped": total(float(not finite))}

    def _gradient(self, parameter: Tensor) -> Tensor:
        """This rank's part of a gradient; zeros where no slice reached the parameter, as FSDP2 has it."""
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        return parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else parameter.grad

    def clear(self) -> None:
        """Forget the gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    def weights(self) -> dict[str, Tensor]:
        """The whole weights under transformers' names, tied ones once. Alone they are the parameters' own memory.

        Of an adapted model they are the adapters alone: the rest is what it was when it was loaded.
        """
        model = inner(self.scorer)
        kept = self.parameters if is_adapted(model) else dict(model.named_parameters())
        return {name: whole(p) for name, p in kept.items()}

    def trained_weights(self) -> dict[str, Tensor]:
        """The whole trained weights, under the names of `parameters`; all ranks take part."""
        return {name: whole(p) for name, p in self.parameters.items()}

    def optimizer_state(self) -> dict[str, Tensor]:
        """The whole optimizer state as CPU tensors `<parameter>/<slot>`, on rank 0; empty before the first step."""
        found: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            for slot, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                tensor = whole(value)
                if self.world.leads:
                    found[f"{name}/{slot}"] = tensor.to("cpu", copy=True)
        return found

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace weights by full tensors under the names of `weights` or `trained_weights` (the same on every rank)."""
        parameters = {**dict(inner(self.scorer).named_parameters()), **self.parameters}
        with torch.no_grad():
            for name, tensor in tensors:
                parameters[name].copy_(part_of(tensor, parameters[name]))

    def load_optimizer(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the optimizer's state by what `optimizer_state` gave (the same full tensors on every rank)."""
        self.optimizer.state.clear()
        for key, tensor in tensors:
            name, _, slot = key.rpartition("/")
            parameter = self.parameters[name]
            self.optimizer.state[parameter][slot] = tensor.clone() if slot == "step" else part_of(tensor, parameter)


def coefficients(live: Live, batch: Credited, objective: Objective) -> tuple[dict[str, Tensor], Metrics]:
    """The first of two passes: dJ/dx for every live output x of a whole unit, at detached values, and the metrics.

    An output that J does not read gets zeros. Back-propagating `(coef_x * x).sum()` per slice then gives J's gradient however the
    unit is split: dJ/dtheta = sum_x dJ/dx dx/dtheta.
    """
    tensors = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in live.tensors().items()}
    loss, metrics = objective(Live.of(tensors), batch)
    floating = {name: value for name, value in tensors.items() if value.requires_grad}
    slopes = torch.autograd.grad(loss, list(floating.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(floating, slopes, strict=True)), metrics


COEF = "coef/"


def linear(live: Live, batch: Credited) -> tuple[Tensor, Metrics]:
    """The second pass's loss: `sum_x (coef_x * x).sum()` with the coefficients in columns `coef/x`."""
    terms = []
    for name, value in live.tensors().items():
        if f"{COEF}{name}" in batch.columns and value.requires_grad:
            coef = batch.columns[f"{COEF}{name}"]
            # where the coefficient is 0 the value may be anything, and 0 * inf would be NaN
            terms.append(torch.where(coef == 0, 0.0, value * coef).sum())
    return torch.stack(terms).sum(), {}


def inner(scorer: nn.Module) -> nn.Module:
    """The transformers model of a scorer: the names of its parameters are the names of the weights."""
    model = getattr(scorer, "model", scorer)
    return model if isinstance(model, nn.Module) else scorer


def decoder_layers(scorer: nn.Module) -> list[nn.Module]:
    """The units of sharding and recomputation: what the scorer calls its `layers`, else the outermost module list."""
    if callable(named := getattr(scorer, "layers", None)):
        return list(named())
    for module in inner(scorer).modules():
        if isinstance(module, nn.ModuleList):
            return list(module)
    return []


def shard(scorer: nn.Module, layers: Sequence[nn.Module], world: World) -> None:
    """Shard parameters over ranks with FSDP2, layer by layer, so that gradients are *summed* over ranks, not averaged."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(scorer, mesh=mesh)
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no scaled sum
            module.set_reduce_scatter_unused_params(True, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """A tensor's full value; all ranks take part where it is sharded."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach()


def part_of(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A full tensor laid out as a parameter is: this rank's shard of it where the parameter is sharded."""
    tensor = tensor.to(parameter.device, parameter.dtype)
    if not isinstance(parameter, DTensor):
        return tensor.clone()
    return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)
