"""The critic's values, and what keeps them true: a column that is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from covey.batch import Batch, Credited, Live
from covey.columns.reference import Score
from covey.metrics import Metrics
from covey.types import STOPS, Stop

CRITIC = "critic"
"""The name of the critic among an engine's models."""
_PER_TOKEN = ("tokens", "mask", "sampled_logp", "old_logp", "turn", "version")


class Engine(Protocol):
    """What a trained column asks of the engines."""

    def forward(self, batch: Batch, outputs: Sequence[str], temperature: float, model: str) -> Live: ...

    def update(self, step: Credited, *, couples: Any, outputs: Sequence[str], temperature: float, lr: float,
               states: Mapping[str, Any], model: str) -> Metrics: ...  # fmt: skip


class Values:
    """`value` [N T]: what the critic expects of prompt + y_<t, read where token t is predicted, at the start of the step."""

    def __init__(self, engine: Engine, *, joint: bool, temperature: float = 1.0) -> None:
        self.engine, self.joint, self.temperature = engine, joint, temperature

    def provide(self, batch: Batch) -> Mapping[str, Tensor]:
        """The column for these rows."""
        return {"value": self.engine.forward(batch, ("value",), self.temperature, CRITIC).outputs["value"]}

    def fit(self, step: Credited, lr: float, *, alone: bool) -> Metrics:
        """One optimizer step of the critic on the rows of one of the policy's, given the policy's learning rate.

        `alone`: the policy does not learn from these rows. A joint critic learns from the policy's own loss otherwise.
        """
        if self.joint and not alone:
            return {}
        return self.engine.update(
            step, couples="row", outputs=("value",), temperature=self.temperature, lr=lr, states={}, model=CRITIC
        )


class EndValues:
    """`value_end` [N]: what the critic expects after the last token of a response that was cut off; 0 for the others."""

    def __init__(self, score: Score, temperature: float) -> None:
        self.score, self.temperature = score, temperature

    def provide(self, batch: Batch) -> Mapping[str, Tensor]:
        """The column for these rows, by a forward pass of the truncated ones."""
        cut = (batch.stop == STOPS.index(Stop.LENGTH)).nonzero().squeeze(1)
        ends = torch.zeros(batch.size, dtype=torch.float64)
        if len(cut):
            rows = _with_one_more(batch.rows(cut))
            value = self.score(rows, ("value",), self.temperature, CRITIC).outputs["value"]
            ends[cut] = value.to(ends.dtype).gather(1, rows.length[:, None] - 1)[:, 0]
        return {"value_end": ends}


def _with_one_more(batch: Batch) -> Batch:
    """Rows with one token more, the only one to be predicted: it is read from the state after the last real one."""
    longer = {name: pad(getattr(batch, name), (0, 1)) for name in _PER_TOKEN}
    mask = torch.arange(longer["mask"].shape[1]) == batch.length[:, None]
    return batch.with_(**{**longer, "mask": mask}, length=batch.length + 1, columns={})
