"""The book of jobs: states, order, time and what a worker's death means, with a clock of the test's own."""

from __future__ import annotations

from typing import Any

import pytest

from engine.errors import ConfigError
from engine.serving.endpoint.jobs import EndpointJob, JobQueue
from engine.serving.endpoint.limits import EndpointLimits

GIVEN = {"input": {"prompt": "a"}}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(clock: Clock) -> JobQueue:
    return JobQueue(EndpointLimits(attempts=2, grace=5, execution_timeout=100, ttl=1000, run_retention=60), clock=clock)


def answer(jobs: JobQueue, job: EndpointJob) -> dict[str, Any]:
    return job.answer(jobs.clock())


def test_jobs_are_taken_in_order_and_those_of_low_priority_last(jobs: JobQueue) -> None:
    low = jobs.submit(GIVEN, policy={"lowPriority": True})
    first, second = jobs.submit(GIVEN), jobs.submit(GIVEN)
    assert jobs.take("w", 3) == [first, second, low]


def test_answer_tells_times_worker_and_output(jobs: JobQueue, clock: Clock) -> None:
    job = jobs.submit(GIVEN)
    clock.now += 2
    jobs.take("w")
    clock.now += 3
    jobs.finish(job, {"output": {"seed": 42}})
    assert answer(jobs, job) == {
        "id": job.id,
        "status": "COMPLETED",
        "delayTime": 2000,
        "executionTime": 3000,
        "workerId": "w",
        "output": {"seed": 42},
    }


def test_progress_is_the_output_until_the_result_replaces_it(jobs: JobQueue) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    jobs.progress(job, {"percent": 5})
    assert answer(jobs, job)["output"] == {"percent": 5}
    jobs.finish(job, {})
    assert "output" not in answer(jobs, job)


def test_an_error_fails_the_job_and_keeps_what_came_beside_it(jobs: JobQueue) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    jobs.finish(job, {"output": {"error_code": "conflict"}, "error": "no"})
    assert answer(jobs, job)["status"] == "FAILED"
    assert answer(jobs, job)["output"] == {"error_code": "conflict"}
    assert answer(jobs, job)["error"] == "no"


@pytest.mark.parametrize("end", ["FAILED", "TIMED_OUT"])
def test_retry_queues_a_failed_job_again_under_its_id_without_its_output(
    jobs: JobQueue, clock: Clock, end: str
) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    if end == "FAILED":
        jobs.finish(job, {"error": "no", "output": {"hint": "x"}})
    else:
        clock.now += 100
        jobs.tick()
    assert job.state == end
    assert jobs.retry(job)
    assert answer(jobs, job) == {"id": job.id, "status": "IN_QUEUE", "delayTime": 0}
    assert jobs.take("v") == [job]
    assert job.payload == GIVEN


def test_retry_refuses_what_completed_was_cancelled_or_goes_on(jobs: JobQueue) -> None:
    done, cancelled, waiting = jobs.submit(GIVEN), jobs.submit(GIVEN), jobs.submit(GIVEN)
    jobs.take("w")
    jobs.finish(done, {"output": 1})
    jobs.cancel(cancelled)
    assert [jobs.retry(job) for job in (done, cancelled, waiting)] == [False, False, False]


def test_purge_withdraws_what_waits_and_leaves_what_runs(jobs: JobQueue) -> None:
    running, waiting = jobs.submit(GIVEN), jobs.submit(GIVEN)
    jobs.take("w")
    assert jobs.purge() == 1
    assert (running.state, waiting.state) == ("IN_PROGRESS", "CANCELLED")


def test_cancel_tells_the_worker_once_and_not_before_it_can_know_the_job(jobs: JobQueue, clock: Clock) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    jobs.cancel(job)
    assert (job.state, jobs.stop_signals("w")) == ("CANCELLED", [])
    clock.now += 0.5
    assert jobs.stop_signals("w") == [job.id]
    assert jobs.stop_signals("w") == []


def test_execution_timeout_of_the_policy_ends_a_job_and_stops_its_worker(jobs: JobQueue, clock: Clock) -> None:
    job = jobs.submit(GIVEN, policy={"executionTimeout": 7})
    clock.now += 50
    jobs.take("w")
    clock.now += 6.9
    jobs.tick()
    assert answer(jobs, job)["status"] == "IN_PROGRESS"
    clock.now += 0.1
    jobs.tick()
    assert answer(jobs, job)["status"] == "TIMED_OUT"
    assert "7 s" in answer(jobs, job)["error"]
    assert jobs.stop_signals("w") == [job.id]


def test_a_worker_that_keeps_a_stopped_job_is_named_after_the_time_of_grace(jobs: JobQueue, clock: Clock) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    clock.now += 1
    jobs.cancel(job)
    clock.now += 4.9
    assert jobs.tick() == []
    clock.now += 0.1
    assert jobs.tick() == ["w"]


def test_a_worker_that_lets_go_is_not_named(jobs: JobQueue, clock: Clock) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    jobs.cancel(job)
    jobs.worker_idle("w")
    clock.now += 60
    assert jobs.tick() == []


def test_a_worker_with_other_work_is_not_named_for_one_stopped_job(jobs: JobQueue, clock: Clock) -> None:
    for _ in range(2):
        jobs.submit(GIVEN)
    stopped, _ = jobs.take("w", 2)
    jobs.cancel(stopped)
    clock.now += 60
    assert jobs.tick() == []


@pytest.mark.parametrize("started", [False, True])
def test_ttl_counts_from_submission_and_forgets_the_job_whatever_it_does(
    jobs: JobQueue, clock: Clock, started: bool
) -> None:
    job = jobs.submit(GIVEN, policy={"ttl": 20})
    clock.now += 19
    if started:
        jobs.take("w")
    clock.now += 1
    jobs.tick()
    assert jobs.find(job.id) is None
    assert jobs.take("v") == []
    assert jobs.stop_signals("w") == ([job.id] if started else [])


def test_a_result_is_forgotten_after_its_retention(jobs: JobQueue, clock: Clock) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    jobs.finish(job, {"output": 1})
    clock.now += 59
    jobs.tick()
    assert jobs.find(job.id) is job
    clock.now += 1
    jobs.tick()
    assert jobs.find(job.id) is None


def test_a_dead_workers_job_goes_first_to_another_and_fails_when_that_dies_too(jobs: JobQueue) -> None:
    job, later = jobs.submit(GIVEN), jobs.submit(GIVEN)
    jobs.take("w")
    jobs.worker_ended("w", "the worker died")
    assert jobs.take("v") == [job]
    jobs.worker_ended("v", "the worker died")
    assert job.state == "FAILED"
    assert answer(jobs, job)["error"] == "the worker died during the job, 2 times in a row"
    assert jobs.take("u") == [later]


def test_a_worker_without_work_that_answered_nothing_has_lost_its_job(jobs: JobQueue) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    jobs.worker_idle("w")
    assert job.state == "FAILED"
    assert "IN_PROGRESS" in answer(jobs, job)["error"]


def test_the_old_worker_has_no_say_in_a_job_that_another_one_retries(jobs: JobQueue, clock: Clock) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    clock.now += 100
    jobs.tick()
    jobs.retry(job)
    jobs.take("v")
    jobs.worker_idle("w")
    jobs.worker_ended("w", "the worker died")
    assert (job.state, job.worker) == ("IN_PROGRESS", "v")


def test_pieces_of_a_stream_are_told_once(jobs: JobQueue) -> None:
    job = jobs.submit(GIVEN)
    jobs.take("w")
    jobs.stream(job, ["a", "b"])
    assert jobs.take_stream(job) == ["a", "b"]
    assert jobs.take_stream(job) == []


def test_numbers_count_what_is_and_what_was(jobs: JobQueue) -> None:
    for _ in range(4):
        jobs.submit(GIVEN)
    done, failed, _ = jobs.take("w", 3)
    jobs.finish(done, {"output": 1})
    jobs.finish(failed, {"error": "no"})
    assert jobs.numbers() == {"completed": 1, "failed": 1, "inProgress": 1, "inQueue": 1, "retried": 0}


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"grace": -1}, {"ttl": float("inf")}, {"run_bytes": float("nan")}])
def test_limits_nobody_can_mean_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EndpointLimits(**wrong).check()
