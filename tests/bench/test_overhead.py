"""What the engine itself costs a job is measured on a real worker, from what its answers say."""

from __future__ import annotations

import pytest

from engine.bench.overhead import run
from engine.errors import RequestError


@pytest.mark.slow
def test_a_job_costs_the_engine_a_fraction_of_a_composition() -> None:
    result = run(jobs=2)

    assert result["jobs"] == 2
    for kind in ("same", "other"):
        assert 0 < result[kind]["overhead"]["least"] <= result[kind]["overhead"]["most"]
        # On a quiet machine of two cores 0.02 to 0.04 s; Hydra alone would take 0.2 s twice.
        assert result[kind]["overhead"]["least"] < 0.4
        assert result[kind]["read"]["median"] > 0


def test_one_job_is_not_enough() -> None:
    with pytest.raises(RequestError, match="at least 2"):
        run(jobs=1)
