"""A file of jobs: names, lines that are none, what is refused before anything is begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ConfigError, RequestError
from engine.serving.batch.jobs import JobFile, Line
from engine.serving.jobs.job import parse_job

ASKED: dict[str, Any] = {"reference_image": "anna.png", "audio_1": "anna.wav", "prompt": "a woman speaks"}


def written(folder: Path, *lines: str | dict[str, Any]) -> Path:
    path = folder / "shots.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines), "utf-8")
    return path


def read(path: Path, *, sink: str = "disk", folder: bool = True) -> JobFile:
    return JobFile(path, sink=sink, in_folder=folder)


def lines(path: Path) -> tuple[Line, ...]:
    return read(path).lines


def test_a_job_without_an_id_is_named_by_what_it_asks_for_wherever_it_stands(tmp_path: Path) -> None:
    one, other = {"input": ASKED}, {"input": ASKED | {"seed": 2}}
    before = [line.id for line in lines(written(tmp_path, one, other))]
    after = [line.id for line in lines(written(tmp_path, other, {"id": "new", "input": ASKED}, one))]
    assert len({*before}) == 2
    assert [after[2], after[0]] == before


def test_equal_jobs_without_ids_are_told_apart(tmp_path: Path) -> None:
    first, second = lines(written(tmp_path, {"input": ASKED}, {"input": dict(reversed(ASKED.items()))}))
    assert second.id == f"{first.id}-2"


def test_keys_have_no_part_in_a_name(tmp_path: Path) -> None:
    bucket = {"accessId": "key", "accessSecret": "secret", "bucketName": "films"}
    one, other = ({"input": ASKED, "s3Config": bucket | {"accessSecret": secret}} for secret in "ab")
    assert lines(written(tmp_path, one))[0].id == lines(written(tmp_path, other))[0].id


def test_two_jobs_of_one_id_are_an_error_that_names_both_lines(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": "a", "input": ASKED}, "", {"id": "b", "input": ASKED}, {"id": "a", "input": {}})
    with pytest.raises(ConfigError, match=r"^entrypoint\.jobs: lines 1 and 4 both have the id 'a'; "):
        read(path)


def test_two_videos_of_one_name_are_an_error_where_the_sink_has_a_folder(tmp_path: Path) -> None:
    named = ASKED | {"output": {"filename": "a.mp4"}}
    path = written(tmp_path, {"id": "a", "input": ASKED}, {"id": "b", "input": named})
    with pytest.raises(ConfigError, match=r"lines 1 and 2 both have the file name 'a\.mp4'"):
        read(path)
    assert [line.filename for line in read(path, sink="s3", folder=False).lines] == [None, None]
    elsewhere = named | {"output": {"filename": "a.mp4", "sink": "s3"}}
    assert lines(written(tmp_path, {"id": "a", "input": ASKED}, {"id": "b", "input": elsewhere}))[1].filename is None


def test_a_job_comes_with_the_name_of_its_video_and_is_one_of_the_api(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": "anna", "input": ASKED}, {"id": "bert", "input": {"action": "plan"} | ASKED})
    jobs = read(path)
    job = parse_job(jobs.job(jobs.lines[0]), folder=tmp_path)
    assert job.filename == "anna.mp4"
    assert job.request is not None
    assert (job.request.image, job.request.speakers[0].audio) == (f"{tmp_path}/anna.png", f"{tmp_path}/anna.wav")
    assert "output" not in jobs.job(jobs.lines[1])["input"]


def test_sinks_know_a_changed_job_by_another_name(tmp_path: Path) -> None:
    # Else a video that waits for its upload would be delivered for another one.
    (before,) = lines(written(tmp_path, {"id": "anna", "input": ASKED}))
    (after,) = lines(written(tmp_path, {"id": "anna", "input": ASKED | {"seed": 2}}))
    assert before.id == after.id == "anna"
    assert before.job != after.job
    assert before.job.startswith("anna-")


def test_only_paths_count_from_the_folder_of_the_jobs() -> None:
    speakers = [
        {"audio": "b/voice.wav", "region": {"mask": "mask.png"}},
        {"audio": "/root/voice.wav"},
        {"audio": "https://example.org/voice.wav"},
        {"audio": "data:audio/wav;base64,AAAA"},
    ]
    asked = {"reference_image": "QUJD" * 20, "prompt": "x", "speakers": speakers}
    request = parse_job({"input": asked}, folder=Path("/films")).request
    assert request is not None
    assert request.image.startswith("data:")
    assert [speaker.audio for speaker in request.speakers] == [
        *("/films/b/voice.wav", "/root/voice.wav", "https://example.org/voice.wav", "data:audio/wav;base64,AAAA"),
    ]
    assert request.speakers[0].region.mask == "/films/mask.png"


@pytest.mark.parametrize(
    ("line", "told", "code"),
    [
        ("{", "line 2: this is not JSON: Expecting property name", "bad_request"),
        ('{"input": {}} {"input": {}}', "line 2: this is not JSON: Extra data at character 15", "bad_request"),
        ("[" * 100_000, "line 2: this is not JSON: it is nested too deep", "bad_request"),
        ("[1]", "line 2: the job is a list, not an object", "wrong_type"),
        ("null", "line 2: the job is null, not an object", "wrong_type"),
    ],
)
def test_a_line_that_is_no_job_is_told_when_its_turn_comes(tmp_path: Path, line: str, told: str, code: str) -> None:
    jobs = read(written(tmp_path, {"id": "a", "input": ASKED}, line))
    assert jobs.lines[1].id.startswith("job-")
    with pytest.raises(RequestError) as caught:
        jobs.job(jobs.lines[1])
    assert str(caught.value).startswith(told)
    assert caught.value.code == code


def test_a_line_that_is_no_text_is_told_alike(tmp_path: Path) -> None:
    path = tmp_path / "shots.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"id": "a", "input": ASKED}).encode() + b"\r\n\xff\xfe\r\n")
    jobs = read(path)
    assert jobs.job(jobs.lines[0])["input"]["prompt"] == ASKED["prompt"]
    with pytest.raises(RequestError, match="it is not UTF-8"):
        jobs.job(jobs.lines[1])


def test_an_id_that_none_can_be_is_left_for_the_job_to_be_refused(tmp_path: Path) -> None:
    jobs = read(written(tmp_path, {"id": "../a", "input": ASKED}, {"id": 5, "input": ASKED}))
    assert all(line.id.startswith("job-") for line in jobs.lines)
    with pytest.raises(RequestError, match="id"):
        parse_job(jobs.job(jobs.lines[0]))


def test_a_file_that_was_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, {"id": "a", "input": ASKED})
    jobs = read(path)
    written(tmp_path, {"id": "a", "input": ASKED | {"seed": 5}})
    with pytest.raises(RequestError, match="the file was changed during the batch"):
        jobs.job(jobs.lines[0])


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_a_job_is_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="there is no job in"):
        read(written(tmp_path, text))


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        read(tmp_path / "none.jsonl")
