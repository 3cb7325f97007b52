"""Out of memory: once more with less on the device, then an error and a new worker."""

from __future__ import annotations

import pytest
from worker_fakes import FakeService, OutOfMemoryError, Work, ask, worker

from engine.machine.profiles import PROFILES
from engine.serving.worker.cuda_errors import is_device_lost, is_out_of_memory
from engine.serving.worker.warm_engine import LOWER, WarmEngine


def full_above(*profiles: str) -> Work:
    def work(service: FakeService, *_: object) -> None:
        if service.memory not in profiles:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    return work


def test_each_profile_but_the_last_has_a_lower_one() -> None:
    assert set(LOWER) == set(PROFILES[:-1])
    assert all(PROFILES.index(lower) > PROFILES.index(name) for name, lower in LOWER.items())


def test_a_job_is_made_again_with_the_next_lower_profile_and_says_so() -> None:
    service = FakeService(full_above("model-offload"))
    handler = worker(service)
    told = ask(handler)
    assert told["video_base64"]
    assert told["warnings"] == [
        "cut",
        "the device's memory ran out with memory=none; the video was made with memory=model-offload",
    ]
    assert "refresh_worker" not in told
    assert service.closed == 1
    assert handler.warm_engine.memory == "model-offload"
    assert ask(handler, {"action": "health"})["memory"] == "model-offload"


def test_out_of_memory_again_is_an_error_and_asks_for_a_new_worker() -> None:
    service = FakeService(full_above())
    told = ask(worker(service))
    assert (told["error_code"], told["refresh_worker"]) == ("out_of_memory", True)
    assert "memory=model-offload" in told["error"]
    assert len(service.requests) == 2


def test_below_the_lowest_profile_nothing_is_tried() -> None:
    service = FakeService(full_above(), memory="lowest")
    told = ask(worker(service))
    assert (told["error_code"], told["refresh_worker"]) == ("out_of_memory", True)
    assert len(service.requests) == 1


def test_another_error_of_the_second_try_is_answered_as_what_it_is() -> None:
    def work(service: FakeService, *_: object) -> None:
        if service.memory == "none":
            raise OutOfMemoryError
        raise ZeroDivisionError

    assert ask(worker(FakeService(work)))["error_code"] == "internal_error"


def test_profiles_are_walked_down_in_order() -> None:
    warm_engine = WarmEngine(FakeService())
    assert [warm_engine.lower_memory() for _ in range(4)] == ["model-offload", "group-offload", "lowest", None]
    assert WarmEngine(FakeService(memory="text-offload")).lower_memory() == "model-offload"


def test_a_profile_of_a_plugin_has_none_below_it() -> None:
    assert WarmEngine(FakeService(memory="acme")).lower_memory() is None


@pytest.mark.parametrize(
    ("error", "full", "lost"),
    [
        (OutOfMemoryError("x"), True, False),
        (RuntimeError("CUDA error: out of memory"), True, False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True, False),
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (RuntimeError("shapes differ"), False, False),
        (MemoryError("CUDA error"), False, False),
    ],
)
def test_errors_of_the_device_are_told_apart_without_torch(error: Exception, full: bool, lost: bool) -> None:
    assert (is_out_of_memory(error), is_device_lost(error)) == (full, lost)


def test_the_real_class_is_recognised_by_its_name() -> None:
    import torch

    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("x"))
