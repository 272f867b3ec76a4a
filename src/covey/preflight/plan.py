"""Memory of a run, phase by phase, before it starts: from the model's configuration and the engines' own code."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from covey.assembly import with_reward
from covey.config import RunConfig
from covey.engines.adapters import Lora
from covey.engines.chat import Chat
from covey.preflight.data import gather
from covey.preflight.machine import Memory, measure_memory, resident_bytes
from covey.preflight.rehearsal import Build, Rehearsal, Shape, Sizes
from covey.preflight.watch import Block
from covey.preflight.words import Words, open_words
from covey.stages.objective import outputs
from covey.types import Sampling

FIRST_USE = 40 << 20
"""What libraries take when they are first used, beyond what they take when they are imported."""
BATCH = 150
"""Bytes per token of a step's rollouts as tensors: ids, masks, three log-probabilities, advantage, weight, and their copies."""
TOKEN, WIDE_TOKEN = 40, 72
"""Bytes per token of a rollout as Python numbers; ids above 256 are objects of their own."""
SMALL_IDS = 257
VARIES = 0.05
"""How much shorter responses are taken to be now and then."""
PROMPTS = 64
"""Prompts whose tokens are counted: the longest by characters."""


@dataclass(frozen=True, slots=True)
class Term:
    """One reason for memory."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Phase:
    """What is alive at the worst moment of a phase."""

    name: str
    terms: tuple[Term, ...]

    @property
    def bytes(self) -> int:
        """All terms together."""
        return sum(term.bytes for term in self.terms)


@dataclass(frozen=True)
class MemoryPlan:
    """Predicted memory of one process of a run.

    `facts` are the numbers that it rests on (tokens of a prompt and a response, rows of a slice ...), `largest` is the largest
    single tensor of the worst phase beside the weights.
    """

    phases: tuple[Phase, ...]
    memory: Memory
    largest: Block | None
    facts: Mapping[str, int] = field(default_factory=dict)

    @property
    def worst(self) -> Phase:
        """The phase with the largest need."""
        return max(self.phases, key=lambda phase: phase.bytes)

    @property
    def peak(self) -> int:
        """Bytes of the worst phase: what the run's memory/peak_mb will come near to."""
        return self.worst.bytes

    @property
    def fits(self) -> bool | None:
        """Whether the peak is available now; None where the system does not say how much is."""
        return None if self.memory.available is None else self.peak <= self.memory.available

    def plain(self) -> dict[str, Any]:
        """The plan as plain data."""
        return {
            "peak_bytes": self.peak,
            "peak_phase": self.worst.name,
            "available_bytes": self.memory.available,
            "total_bytes": self.memory.total,
            "fits": self.fits,
            "largest_tensor": None if self.largest is None else asdict(self.largest),
            "facts": dict(self.facts),
            "phases": [{**asdict(phase), "bytes": phase.bytes} for phase in self.phases],
        }


@dataclass(frozen=True)
class Question:
    """What a plan is asked about: settings, the model's files, tokens of prompt and response, held-out problems by set.

    `base` is the memory of a process that has imported everything; None: this process's own.
    """

    config: RunConfig
    words: Words
    prompt: int
    response: int
    problems: tuple[int, ...]
    base: int | None


def ask(
    config: RunConfig, *, prompt: int | None = None, response: int | None = None, base: int | None = None
) -> Question:
    """Gather what a plan needs to know. Responses are as long as `max_tokens` unless said otherwise."""
    model = config.model
    chat = Chat(system=model.system, template_kwargs=model.chat_template_kwargs, thinking=model.thinking)
    words = open_words(model.path, chat)
    rows = gather(with_reward(config.task, config.reward), config.budget.seed)
    longest = sorted(rows.all, key=lambda p: sum(len(m.content) for m in p.messages), reverse=True)[:PROMPTS]
    most = config.budget.eval_problems
    return Question(
        config=config,
        words=words,
        prompt=prompt or max((len(words.render(p.messages)) for p in longest), default=1),
        response=min(response or config.budget.sampling.max_tokens, config.budget.sampling.max_tokens),
        problems=tuple(len(held) if most is None else min(most, len(held)) for _, held in rows.held),
        base=base,
    )


def plan_memory(config: RunConfig, *, prompt: int | None = None, response: int | None = None) -> MemoryPlan:
    """Predict the memory of a run from its model's configuration, without reading a weight; see `ask` and `answer`."""
    return Forecast().answer(ask(config, prompt=prompt, response=response))


class Forecast:
    """Answers questions about one model; what two answers have in common is rehearsed once."""

    def __init__(self) -> None:
        self._rehearsals: dict[Build, Rehearsal] = {}
        self._found: dict[Any, Any] = {}

    def answer(self, question: Question) -> MemoryPlan:
        """The plan of a run."""
        rehearsal = self._rehearsal(question)
        sizes = rehearsal.sizes()
        base = question.base if question.base is not None else self._base
        shape, slices = fullest_slice(question)
        phases, largest = [], dict[str, Block | None]()
        for name, terms, block in (
            self._loading(question, sizes),
            self._sampling(question, rehearsal, "evaluate"),
            self._sampling(question, rehearsal, "sample"),
            self._updating(question, rehearsal, shape, slices),
            self._stepping(sizes),
            self._saving(question, sizes),
        ):
            alive = [*_standing(question, sizes, base, name), *terms]
            phases.append(Phase(name, tuple(term for term in alive if term.bytes)))
            largest[name] = block
        facts = {
            "prompt_tokens": question.prompt,
            "response_tokens": question.response,
            "slice_rows": shape.rows,
            "slice_tokens": shape.tokens,
            "slices": slices,
            "parameters": sizes.parameters,
        }
        worst = max(phases, key=lambda phase: phase.bytes)
        return MemoryPlan(tuple(phases), measure_memory(), largest[worst.name] or largest["update"], facts)

    @cached_property
    def _base(self) -> int:
        """What this process has once everything is imported, and what libraries take when they are used."""
        return (resident_bytes() or 0) + FIRST_USE

    def _rehearsal(self, question: Question) -> Rehearsal:
        model = question.config.model
        lora = None
        if model.lora is not None:
            lora = Lora(rank=model.lora.rank, alpha=model.lora.alpha, targets=model.lora.targets)
        build = Build(dtype=model.dtype, lora=lora, quantize=model.quantize)
        if build not in self._rehearsals:
            self._rehearsals[build] = Rehearsal(question.words.config, build)
        return self._rehearsals[build]

    def _once(self, key: Any, run: Callable[[], Found]) -> Found:
        if key not in self._found:
            self._found[key] = run()
        return self._found[key]  # type: ignore[no-any-return]

    def _loading(self, question: Question, sizes: Sizes) -> Part:
        """Weights in the format of their file are pages of that file; in another format both are there for a while."""
        stored = sum(path.stat().st_size for path in question.words.folder.glob("*.safetensors"))
        other = question.config.model.quantize is not None or abs(stored - sizes.weights) > 0.2 * sizes.weights
        return "load", [Term("file", stored if other else 0, "pages of the files, read into another format")], None

    def _sampling(self, question: Question, rehearsal: Rehearsal, phase: str) -> Part:
        """Cache and workspace of a wave of rollouts, and the rollouts that are kept."""
        budget, limit = question.config.budget, question.config.engines.sampler_rows
        problems = max(question.problems, default=0) if phase == "evaluate" else budget.prompts_per_step
        samples = budget.eval_samples if phase == "evaluate" else budget.samples_per_prompt
        kept = (sum(question.problems) if phase == "evaluate" else problems) * samples
        rows = min(limit, problems * samples)
        if not rows:
            return phase, [], None
        groups = max(1, rows // samples)
        shape = Shape(groups, min(samples, rows), question.prompt, question.response)
        sampling = budget.sampling.with_stop_ids(question.words.stop_ids)
        drawn = Sampling(
            sampling.temperature, sampling.top_p, sampling.top_k, question.response
        )  # what ends a response takes no memory
        build = rehearsal.build
        found = self._once((build, shape, drawn), lambda: rehearsal.sample(shape, drawn))
        why = f"keys, values, logits and noise of {rows} rows of up to {question.prompt + question.response} tokens"
        wave = Term("wave", found.bytes, why)
        return phase, [wave, _rollouts(question, kept)], found.largest

    def _updating(self, question: Question, rehearsal: Rehearsal, shape: Shape, slices: int) -> Part:
        """Gradients and what a slice keeps for the backward pass."""
        config = question.config
        kept = config.budget.prompts_per_step * config.budget.samples_per_prompt
        names = tuple(
            name for name in outputs(config.recipe) if name != "value"
        )  # a value head is one number per token
        heat = config.budget.sampling.temperature
        recompute = config.engines.gradient_checkpointing
        key = (rehearsal.build, shape, names, heat, recompute, slices, _keeps_moments(config))
        mark, largest = self._once(
            key,
            lambda: rehearsal.steps(
                shape,
                outputs=names,
                temperature=heat,
                recompute=recompute,
                slices=slices,
                moments=_keeps_moments(config),
            ),
        )
        what = "inputs of the layers, one of them computed anew" if recompute else "what every layer keeps for backward"
        activations = mark.living - mark.gradients - mark.moments
        terms = [
            Term("moments", mark.moments, "two numbers per trained parameter"),
            Term("gradients", mark.gradients, "one number per trained parameter that has one at that moment"),
            Term("activations", activations, f"{shape.tokens} tokens of a slice: {what}, logits"),
            Term("gaps", mark.taken - mark.living, "between the blocks of the C library's heap"),
            Term("batch", kept * question.response * BATCH, f"{kept} rows x {question.response} tokens as tensors"),
            _rollouts(question, kept),
        ]
        return "update", terms, largest

    def _stepping(self, sizes: Sizes) -> Part:
        """The optimizer works on one parameter at a time."""
        terms = [
            Term("gradients", sizes.trained, "one number per trained parameter"),
            Term("workspace", 2 * sizes.largest, "two copies of the largest trained parameter"),
        ]
        return "step", terms, None

    def _saving(self, question: Question, sizes: Sizes) -> Part:
        """A checkpoint is written from a copy of the optimizers' moments."""
        models = 1 if question.config.recipe.own_critic is None else 2
        return "save", [Term("copy", 2 * models * sizes.trained, "the moments once more, to be written")], None


Found = TypeVar("Found")
Part = tuple[str, list[Term], Block | None]


def _standing(question: Question, sizes: Sizes, base: int, phase: str) -> Iterable[Term]:
    """What is there in a phase whatever it does."""
    config = question.config
    yield Term("process", base, "Python, torch, transformers")
    yield Term("weights", sizes.weights, f"{sizes.parameters / 1e6:,.1f} million parameters, {config.model.dtype}")
    if phase != "load" and "ref_logp" in config.recipe.needs():
        yield from _reference(config, sizes)
    keeps = phase in ("evaluate", "step", "save") or (phase == "sample" and _keeps_moments(config))
    if keeps:
        yield Term("moments", 2 * sizes.trained, "two numbers per trained parameter")
    if phase != "load" and config.recipe.own_critic is not None:
        moments = 2 * sizes.trained if keeps or phase == "update" else 0
        yield Term(
            "critic", sizes.weights + moments, "a second model with its optimizer; it learns before the policy does"
        )


def _reference(config: RunConfig, sizes: Sizes) -> Iterable[Term]:
    """A copy of what is trained; fresh adapters are switched off instead, unless the reference moves."""
    moves = config.recipe.reference.kind != "initial"
    if config.model.lora is None:
        yield Term("reference", sizes.weights, "a second, frozen copy of the weights")
    elif moves:
        yield Term("reference", sizes.trained, "a second, frozen copy of the adapters")
    if moves and getattr(config.recipe.reference, "mix", 1.0) < 1 and config.model.dtype == "bfloat16":
        yield Term("exact", 2 * sizes.trained, "the reference in float32: small moves are lost in bfloat16")


def _keeps_moments(config: RunConfig) -> bool:
    """Whether there is a slice after the first optimizer step."""
    return config.budget.optimizer_steps > 1


def _rollouts(question: Question, kept: int) -> Term:
    """Rollouts as Python objects."""
    each = TOKEN if question.words.config.get_text_config().vocab_size <= SMALL_IDS else WIDE_TOKEN
    size = kept * question.response * each
    return Term("rollouts", size, f"{kept} rollouts x {question.response} tokens as Python numbers")


def fullest_slice(question: Question) -> tuple[Shape, int]:
    """The shape of the fullest slice of an optimizer step that `tokens_per_slice` allows, and how many there are at least.

    Over many steps a slice comes up into which one group more goes, because a few responses are shorter; so one that would fit
    with responses a twentieth shorter is in it, as long as the limit then lets them be.
    """
    config, prompt, response = question.config, question.prompt, question.response
    budget, limit = config.budget, config.engines.tokens_per_slice
    groups, samples = -(-budget.prompts_per_step // budget.optimizer_steps_per_pass), budget.samples_per_prompt
    shorter = max(1, round((1 - VARIES) * response))
    if prompt + samples * shorter <= limit:
        together = min(groups, limit // (prompt + samples * shorter))
        room = (limit // together - prompt) // samples
        return Shape(together, samples, prompt, min(response, room)), -(-groups // together)
    rows = min(samples, max(1, (limit - prompt) // shorter))
    room = response if rows == 1 else (limit - prompt) // rows
    return Shape(1, rows, prompt, min(response, room)), groups * -(-samples // rows)
