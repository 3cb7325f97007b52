"""What a job costs beside its stages is measured on a real worker, and told in its answer."""

from __future__ import annotations

from engine.bench.overhead import run


def test_a_later_job_composes_nothing_and_costs_little_beside_its_stages() -> None:
    found = run(jobs=3)
    assert found["jobs"] == 3
    for part in ("first", "median", "most"):
        assert found[part]["stages"] > found[part]["overhead"] > found[part]["composing"] > 0
    # 17 ms against 177 ms on a busy machine of two cores; composing anew would take as long as the first time.
    assert found["median"]["composing"] < found["first"]["composing"] / 2
