"""The scorer as the root of FSDP2: two ranks give the gradient of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranks import finish, start


@pytest.mark.distributed
def test_two_ranks_give_the_gradient_of_one() -> None:
    found = finish(start(Path(__file__).with_name("scorer_process.py"), [], size=2))
    assert [code for code, _ in found] == [0, 0], found
    distances = [float(line.split()[1]) for line in found[0][1].splitlines() if line.startswith("distance")]
    assert len(distances) == 6
    assert max(distances) <= 1e-12
