"""The runs whose folders are read, made once."""

from __future__ import annotations

import pytest

from tests.interchange.made import Made, make_all


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two runs and their exports."""
    return make_all(tmp_path_factory.mktemp("interchange"))
