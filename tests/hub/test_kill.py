"""A download that is killed loses nothing and leaves nothing that passes for complete."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_and_resume import run_round


# While bytes come, and after the last of them; `nox -s kills` tries twenty points.
@pytest.mark.parametrize("seed", [2, 9])
def test_a_killed_download_goes_on_where_it_was(tmp_path: Path, seed: int) -> None:
    assert not run_round(seed, tmp_path).problems
