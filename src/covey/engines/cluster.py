"""Rank 0's view of all ranks: the loop runs on rank 0 alone, the others serve its commands; alone it calls straight through."""

from __future__ import annotations

import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor

from covey.batch import Batch, Credited, Live
from covey.engines.fingerprint import find_lost
from covey.engines.learner import COEF, SlicedScorer, TorchLearner, coefficients, inner, linear
from covey.engines.reference import Follower
from covey.engines.slices import Plan, plan_shares, plan_slices
from covey.engines.transport import (
    join,
    live_to,
    metrics_from,
    metrics_to,
    samples_from,
    samples_to,
    sampling_from,
    share_out,
    unpack,
)
from covey.engines.world import Payload, World, is_disconnection
from covey.errors import CoveyError
from covey.metrics import Metrics, merge
from covey.protocols import Sampler
from covey.random import key
from covey.registry import Couples, State
from covey.types import Json, Request, Sample, Sampling

States = Mapping[str, State]
Objective = Callable[[Live, Credited, States], tuple[Tensor, Metrics]]
"""The loss of a slice and its metrics, reading the components' states; every rank builds it from the same recipe."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that learns, and from what."""

    learner: TorchLearner
    objective: Objective


class Cluster:
    """All ranks as one learner and one sampler.

    Every rank constructs it from the same run; rank 0 calls its methods and, at the end, `stop`; the others call `serve`.
    A failure on any rank ends the run with one error on rank 0: a CoveyError as it was, with its rank, or a RankError.
    """

    def __init__(
        self,
        *,
        world: World,
        learner: TorchLearner,
        sampler: Sampler,
        objective: Objective,
        references: Mapping[str, SlicedScorer] | None = None,
        follower: Follower | None = None,
        critic: Trained | None = None,
    ) -> None:
        self.world, self.learner, self.sampler, self.follower = world, learner, sampler, follower
        self.trained = {"policy": Trained(learner, objective), **({} if critic is None else {"critic": critic})}
        learners = {name: one.learner for name, one in self.trained.items()}
        self.scorers: dict[str, SlicedScorer] = {**learners, **(references or {})}
        self._failed = False

    def sample(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """Continuations of every request, in order; each rank samples the share of requests that their ids give it."""
        if self.world.size == 1:
            return self.sampler.sample(requests, sampling)
        shares = share_requests(requests, self.world.size)
        payloads: list[Payload] = [
            ({"requests": [asdict(requests[at]) for at in share], "sampling": asdict(sampling)}, {}) for share in shares
        ]
        found: list[list[Sample]] = [[] for _ in requests]
        for share, answer in zip(shares, self._ask("sample", payloads), strict=True):
            for at, samples in zip(share, samples_from(answer), strict=True):
                found[at] = samples
        return found

    def forward(
        self, batch: Batch, outputs: Sequence[str] = (), temperature: float = 1.0, model: str = "policy"
    ) -> Live:
        """Log-probabilities and outputs of one of the models without gradient, rows in the order of `batch`."""
        if self.world.size == 1:
            return self.scorers[model].forward(batch, outputs, temperature)
        shares = plan_shares(batch, self.world.size)
        options = {"outputs": list(outputs), "temperature": temperature, "model": model}
        return join(self._ask("forward", share_out(batch, shares, options)), shares, batch)

    def update(
        self,
        step: Credited,
        *,
        couples: Couples,
        outputs: Sequence[str],
        temperature: float,
        lr: float,
        states: States,
        model: str = "policy",
    ) -> Metrics:
        """One optimizer step of a model on all rows of `step`; the metrics are totals over slices and ranks.

        A coupled objective whose unit would be split is taken in two passes: J and dJ/dx from the detached outputs of the whole
        step, then `(dJ/dx * x).sum()` slice by slice.
        """
        shares = plan_shares(step, self.world.size)
        first: Metrics = {}
        options: dict[str, Json] = {
            "outputs": list(outputs),
            "temperature": temperature,
            "states": states,
            "linear": False,
            "model": model,
        }
        owner = self.trained[model]
        if self._parts(step, shares, couples):
            live = self.forward(step, outputs, temperature, model)
            coefs, first = coefficients(live, step, lambda live, rows: owner.objective(live, rows, states))
            step = step.with_(columns={f"{COEF}{name}": coef for name, coef in coefs.items()})
            options["linear"] = True
        if self.world.size == 1:
            return merge([first, self._backward(step, options), owner.learner.step(lr)])
        second = merge(metrics_from(answer) for answer in self._ask("backward", share_out(step, shares, options)))
        return merge([first, second, metrics_from(self._ask("step", self._same({"lr": lr, "model": model}))[0])])

    def _parts(self, step: Credited, shares: Plan, couples: Couples) -> bool:
        """Whether slices would part rows that the objective couples."""
        if couples == "row":
            return False
        plan, whole = plan_slices(step, self.learner.tokens_per_slice)  # every model of a run has the same limit
        if couples == "group":
            return not whole
        return len(plan) > 1 or sum(bool(share) for share in shares) > 1

    def publish(self, version: int) -> list[str]:
        """Give every sampler the learner's weights under a version, and let a moving reference follow up to that step.

        Returns what did not arrive, with its rank: the names of tensors that differ in a sampler that can be looked into.
        """
        answers = self._ask("publish", self._same({"version": version}))
        ranks = enumerate(answer[0]["lost"] for answer in answers)
        return [f"rank {rank}: {name}" if len(answers) > 1 else name for rank, names in ranks for name in names]

    def weights(self) -> Mapping[str, Tensor]:
        """The whole weights under transformers' names."""
        self._tell("weights", {})
        return self._guarded(self.learner.weights)

    def optimizer_state(self, model: str = "policy") -> Mapping[str, Tensor]:
        """The whole optimizer state of a model as tensors `<parameter>/<slot>`; empty where nobody trains such a model."""
        if model not in self.trained:
            return {}
        self._tell("optimizer_state", {"model": model})
        return self._guarded(self.trained[model].learner.optimizer_state)

    def critic_weights(self) -> Mapping[str, Tensor]:
        """All trained weights of the critic, head included; empty without one."""
        if "critic" not in self.trained:
            return {}
        self._tell("trained_weights", {"model": "critic"})
        return self._guarded(self.trained["critic"].learner.trained_weights)

    def reference_state(self) -> Mapping[str, Tensor]:
        """The whole values of a moving reference under the names of `weights`; empty where the reference never moves."""
        self._tell("reference_state", {})
        return self._guarded(self._reference_state)

    def _reference_state(self) -> Mapping[str, Tensor]:
        return self.follower.tensors() if self.follower else {}

    def load(
        self,
        *,
        weights: Mapping[str, Tensor] | None = None,
        optimizer: Mapping[str, Tensor] | None = None,
        model: str = "policy",
    ) -> None:
        """Replace weights (all or some), optimizer state or both of a model on every rank by full tensors."""
        for part, tensors in (("weights", weights), ("optimizer", optimizer)):
            if tensors is not None:
                self._load_all({"part": part, "model": model}, tensors)

    def load_reference(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Replace a moving reference by what `reference_state` gave after a step."""
        if self.follower is not None:
            self._load_all({"part": "reference", "at": step}, tensors)

    def _load_all(self, header: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> None:
        kinds = {name: [list(t.shape), str(t.dtype).removeprefix("torch.")] for name, t in tensors.items()}
        whole_header = {**header, "kinds": kinds}
        self._tell("load", whole_header)
        self._load(whole_header, tensors)

    def stop(self) -> None:
        """End `serve` on the other ranks and leave. After a failure the others have gone already."""
        if not self._failed:
            self._tell("stop", {})
        self.world.close()

    def serve(self) -> None:
        """Execute rank 0's commands until it stops (ranks other than 0). Ctrl-C and termination are rank 0's to handle.

        After a failure it leaves word for rank 0 and raises SystemExit with the error's code.
        """
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_IGN)
        try:
            while self._serve_once():
                pass
        except Exception as error:
            self.world.report(error, traceback.format_exc())
            raise SystemExit(error.exit_code if isinstance(error, CoveyError) else 1) from None
        self.world.close()

    def _serve_once(self) -> bool:
        header, tensors = self.world.scatter()
        command = header.pop("command")
        if command in _ANSWERED:
            self.world.gather(self._answer(command, (header, tensors)))
        elif command == "load":
            self._load(header, None)
        elif command == "reference_state":
            self._reference_state()
        elif command != "stop":
            getattr(self.trained[header.get("model", "policy")].learner, command)()
        return bool(command != "stop")

    def _same(self, header: Mapping[str, Json]) -> list[Payload]:
        return [(header, {})] * self.world.size

    def _ask(self, command: str, payloads: Sequence[Payload]) -> list[Payload]:
        """Have every rank execute a command on its payload and collect the answers."""

        def run() -> list[Payload]:
            self.world.scatter([({**header, "command": command}, tensors) for header, tensors in payloads])
            return self.world.gather(self._answer(command, payloads[0]))

        return self._guarded(run)

    def _tell(self, command: str, header: Mapping[str, Json]) -> None:
        """Announce a command that every rank executes together with rank 0 and that nobody answers."""
        if self.world.size > 1:
            self._guarded(lambda: self.world.broadcast(({**header, "command": command}, {})))

    def _guarded(self, run: Callable[[], Result]) -> Result:
        """Run a collective on rank 0; when it breaks because another rank failed, raise that rank's error."""
        try:
            return run()
        except Exception as error:
            if self.world.size == 1:
                raise
            self._failed = True
            cause = self.world.cause() if is_disconnection(error) else error
            self.world.close()
            if cause is error:
                raise
            raise cause from error

    def _answer(self, command: str, payload: Payload) -> Payload:
        header = payload[0]
        if command == "sample":
            requests = [Request(r["id"], tuple(r["tokens"]), tuple(r["noise_keys"])) for r in header["requests"]]
            return samples_to(self.sampler.sample(requests, sampling_from(header["sampling"])) if requests else [])
        if command == "forward":
            batch, scorer = unpack(payload), self.scorers[header["model"]]
            return live_to(scorer.forward(batch, header["outputs"], header["temperature"], idle=header["idle"]), batch)
        if command == "backward":
            return metrics_to(self._backward(unpack(payload), header)), {}
        if command == "step":
            return metrics_to(self.trained[header["model"]].learner.step(header["lr"])), {}
        if self.follower is not None:
            self.follower.follow(header["version"])
        weights = self.learner.weights()
        self.sampler.publish(weights, header["version"])
        return {"lost": find_lost(inner(self.learner.scorer), weights, self.sampler)}, {}

    def _backward(self, batch: Credited, options: Mapping[str, Json]) -> Metrics:
        owner = self.trained[options["model"]]

        def objective(live: Live, rows: Credited) -> tuple[Tensor, Metrics]:
            return linear(live, rows) if options["linear"] else owner.objective(live, rows, options["states"])

        idle = options.get("idle", False)
        return owner.learner.backward(batch, objective, options["outputs"], options["temperature"], idle=idle)

    def _load(self, header: Mapping[str, Json], tensors: Mapping[str, Tensor] | None) -> None:
        """Rank 0's tensors, one after another, into every rank's learner."""

        def received() -> Iterator[tuple[str, Tensor]]:
            for name, (shape, dtype) in header["kinds"].items():
                own = (
                    torch.empty(shape, dtype=getattr(torch, dtype)) if tensors is None else tensors[name].detach().cpu()
                )
                yield name, self.world.share(own.contiguous())

        def load() -> None:
            if header["part"] == "reference" and self.follower is not None:
                self.follower.load(received(), header["at"])
            elif header["part"] == "weights":
                self.trained[header["model"]].learner.load_weights(received())
            else:
                self.trained[header["model"]].learner.load_optimizer(received())

        self._guarded(load)


_ANSWERED = ("sample", "forward", "backward", "step", "publish")


def share_requests(requests: Sequence[Request], ranks: int) -> Plan:
    """Positions of the requests that each rank samples: dealt in turn in the order of a hash of their ids."""
    order = sorted(range(len(requests)), key=lambda at: (key("share", requests[at].id), at))
    return [order[rank::ranks] for rank in range(ranks)]
