"""The folder of a run: a free one, and room for its checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from covey.errors import StorageError
from covey.folder import check_space, new_folder


def test_the_first_free_number_is_taken(tmp_path: Path) -> None:
    assert [new_folder(None, "a", tmp_path).name for _ in range(3)] == ["a-1", "a-2", "a-3"]


def test_room_is_asked_for_in_bytes(tmp_path: Path) -> None:
    check_space(tmp_path, shutil.disk_usage(tmp_path).free // 2)
    with pytest.raises(StorageError, match=r"MB free, the checkpoints of this run take about .* MB"):
        check_space(tmp_path, 10**18)
