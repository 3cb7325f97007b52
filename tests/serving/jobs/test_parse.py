"""A job becomes the engine's request: defaults, turbo, speakers, actions, keys."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from engine.assembly.compose import compose, compose_request
from engine.data import Region, Request, Speaker
from engine.data.budget import Budget
from engine.errors import ConfigError, RequestError
from engine.serving.jobs.answers import error_answer
from engine.serving.jobs.defaults import JobDefaults
from engine.serving.jobs.job import ParsedJob, caller_field, parse_job
from engine.serving.jobs.speakers import parse_speakers

ROOT = Path(__file__).parents[3]
GOOD = {"reference_image": "anna.png", "audio_1": "anna.wav", "prompt": "a woman speaks"}
SENTINEL = "SENTINEL-of-a-secret"
STORE = {
    "accessId": f"{SENTINEL}-id",
    "accessSecret": f"{SENTINEL}-key",
    "sessionToken": f"{SENTINEL}-token",
    "bucketName": "films",
    "endpointUrl": f"https://{SENTINEL}.example.org",
}


def parse(**fields: Any) -> ParsedJob:
    return parse_job({"id": "job-1", "input": {**GOOD, **fields}})


def request(**fields: Any) -> Request:
    asked = parse(**fields).request
    assert asked is not None
    return asked


def refused(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    return caught.value


def test_defaults_are_the_older_workers() -> None:
    assert parse() == ParsedJob(
        id="job-1",
        action="generate",
        request=Request(
            prompt="a woman speaks",
            image="anna.png",
            speakers=(Speaker("anna.wav"),),
            seed=42,
            frames=100,
            fps=8.0,
            overrides=("sampler=standard", "sampler.steps=20", "guidance.text_scale=7.5"),
            budget=Budget(frames=201, seconds=600, steps=100, forwards=50_000),
        ),
        fields=parse().fields,
    )


def test_every_field_arrives_in_the_request() -> None:
    asked = request(
        negative_prompt="blurred",
        num_frames=33,
        fps=25,
        seed=7,
        audio_type="add",
        timing="native",
        fit="pad",
        output={"filename": "anna.mp4"},
        live=True,
        preview="window",
    )
    assert (asked.live, asked.preview) == (True, "window")
    assert (request().live, request().preview) == (None, None)
    assert (asked.negative_prompt, asked.frames, asked.fps, asked.seed) == ("blurred", 33, 25.0, 7)
    assert (asked.audio_type, asked.timing, asked.fit, asked.filename) == ("add", "native", "pad", "anna.mp4")


def test_a_video_as_long_as_its_voices_has_the_models_rate_unless_the_job_names_one() -> None:
    assert (request(num_frames="auto").frames, request(num_frames="auto").fps) == (None, None)
    assert (request(num_frames="auto", fps=8).frames, request(num_frames="auto", fps=8).fps) == (None, 8.0)
    assert "sampler.steps=20" in request(num_frames="auto").overrides


def test_a_worker_may_have_auto_as_its_default() -> None:
    def asked(job_defaults: JobDefaults, **fields: Any) -> tuple[Any, ...]:
        found = parse_job({"input": {**GOOD, **fields}}, job_defaults=job_defaults).request
        assert found is not None
        return found.frames, found.fps, found.overrides

    api = ("sampler=standard", "sampler.steps=20", "guidance.text_scale=7.5")
    assert asked(JobDefaults("auto")) == (None, None, api)
    assert asked(JobDefaults("auto"), fps=12) == (None, 12.0, api)
    assert asked(JobDefaults("auto"), num_frames=50) == (50, 8.0, api)
    assert asked(JobDefaults("50")) == asked(JobDefaults(50)) == (50, 8.0, api)
    assert asked(JobDefaults(source="model")) == (None, None, ("sampler=standard",))
    assert asked(JobDefaults(source="model"), num_frames=9, guidance_scale=3) == (
        9,
        None,
        ("sampler=standard", "guidance.text_scale=3"),
    )
    wrongs: tuple[dict[str, Any], ...] = (
        {"frames": 0},
        {"frames": "long"},
        {"frames": "-5"},
        {"frames": True},
        {"source": "mine"},
    )
    for wrong in wrongs:
        with pytest.raises(ConfigError, match="entrypoint"):
            JobDefaults(**wrong)


def test_whole_floats_become_whole_numbers() -> None:
    asked = request(num_frames=100.0, seed=7.0, sampling_steps=12.0)
    assert (repr(asked.frames), repr(asked.seed)) == ("100", "7")
    assert "sampler.steps=12" in asked.overrides


def test_turbo_leaves_steps_and_scales_to_the_models_bundle() -> None:
    assert request(turbo=True).overrides == ("sampler=turbo",)


def test_turbo_takes_what_the_job_names_itself() -> None:
    asked = request(turbo=True, sampling_steps=6, guidance_scale=2, audio_guidance_scale=1.5)
    assert asked.overrides == (
        "sampler=turbo",
        "sampler.steps=6",
        "guidance.text_scale=2",
        "guidance.audio_scale=1.5",
    )


def test_values_named_equal_to_their_defaults_count_as_named() -> None:
    assert "sampler.steps=20" in request(turbo=True, sampling_steps=20).overrides


def test_audio_scale_stays_the_models_unless_named() -> None:
    assert not [override for override in request().overrides if "audio_scale" in override]
    assert "guidance.audio_scale=4" in request(audio_guidance_scale=4).overrides


def test_overrides_of_the_job_come_last() -> None:
    asked = request(resolution="480p", sampling_steps=9, overrides=["sampler.steps=5", "cache=teacache"])
    assert asked.overrides[-2:] == ("sampler.steps=5", "cache=teacache")
    assert asked.overrides.index("sampler.steps=9") < asked.overrides.index("sampler.steps=5")


@pytest.mark.parametrize("turbo", [False, True])
def test_overrides_compose(turbo: bool) -> None:
    asked = request(turbo=turbo, sampling_steps=9, guidance_scale=1e-7, audio_guidance_scale=3.0, resolution="large")
    config = compose_request([], asked.overrides)
    assert (config.sampler.bundle, config.sampler.steps) == ("turbo" if turbo else "standard", 9)
    assert (config.guidance.text_scale, config.guidance.audio_scale) == (1e-7, 3.0)
    assert config.resolution == "large"


def test_turbo_composes_to_the_models_own_bundle() -> None:
    config = compose_request(["model=multitalk"], request(turbo=True).overrides)
    bundle = compose(["model=multitalk"]).model.turbo
    assert (config.sampler.steps, config.guidance.text_scale) == (bundle.steps, bundle.text_scale)


def test_override_that_a_job_may_not_make_is_refused_in_time() -> None:
    with pytest.raises(RequestError, match="sink"):
        compose_request([], request(overrides=["sink=disk"]).overrides)


# --- speakers ---------------------------------------------------------------------------------------------------------


def test_second_voice_is_the_second_speaker() -> None:
    assert request(audio_2="bert.wav").speakers == (Speaker("anna.wav"), Speaker("bert.wav"))


def test_regions_stand_beside_the_voices() -> None:
    asked = request(audio_2="bert.wav", region_1={"box": [0, 0, 0.5, 1]}, region_2={"mask": "bert.png"})
    assert asked.speakers == (
        Speaker("anna.wav", Region(box=(0.0, 0.0, 0.5, 1.0))),
        Speaker("bert.wav", Region(mask="bert.png")),
    )


SPEAKERS: list[dict[str, Any]] = [
    {"audio": "anna.wav", "region": {"box": [0, 0, 0.5, 1]}},
    {"silence": True, "region": {"mask": "bert.png"}},
    {"audio": "carl.wav", "region": "auto"},
]


def test_speakers_are_those_of_a_speakers_file() -> None:
    job = parse_job({"input": {"reference_image": "a.png", "prompt": "x", "speakers": SPEAKERS}})
    assert job.request is not None
    assert job.request.speakers == parse_speakers(SPEAKERS)


@pytest.mark.parametrize("beside", ["audio_1", "audio_2", "region_1", "region_2"])
def test_speakers_take_the_place_of_numbered_voices(beside: str) -> None:
    fields = {"reference_image": "a.png", "prompt": "x", "speakers": SPEAKERS, beside: "auto"}
    with pytest.raises(RequestError) as caught:
        parse_job({"input": fields})
    assert (caught.value.field, caught.value.code) == (beside, "conflict")


@pytest.mark.parametrize(
    ("speakers", "field", "code"),
    [
        ([{}], "speakers[0].audio", "missing_field"),
        ([{"silence": False}], "speakers[0].audio", "missing_field"),
        ([{"silence": True}, {"audio": "a", "silence": True}], "speakers[1].audio", "conflict"),
        ([{"silence": "yes"}], "speakers[0].silence", "wrong_type"),
        ([{"audio": "a", "regoin": "auto"}], "speakers[0].regoin", "unknown_field"),
        (["a.wav"], "speakers[0]", "wrong_type"),
        ([{"audio": "a", "region": {"box": [1, 0, 0.5, 1]}}], "speakers[0].region.box", "bad_value"),
    ],
)
def test_wrong_speaker_is_named(speakers: list[Any], field: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_job({"input": {"reference_image": "a.png", "prompt": "x", "speakers": speakers}})
    assert (caught.value.field, caught.value.code) == (field, code)


RECORDED: dict[str, Any] = {"reference_image": "a.png", "prompt": "x", "voices": "call.wav"}


def test_people_of_a_recording_have_boxes() -> None:
    job = parse_job({"input": {**RECORDED, "boxes": [[0.5, 0, 1, 1], [0, 0, 0.5, 1]]}})
    assert job.request is not None
    assert job.request.boxes == ((0.5, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0))
    assert job.request.speakers == ()
    assert caller_field("request.boxes[1]", job.fields) == "boxes[1]"


@pytest.mark.parametrize(
    ("values", "field", "code"),
    [
        ({"boxes": []}, "boxes", "out_of_range"),
        ({"boxes": [[0, 0, 1]]}, "boxes[0]", "out_of_range"),
        ({"boxes": [[0, 0, 1, "1"]]}, "boxes[0][3]", "wrong_type"),
        ({"boxes": [[0, 0, 1, 1], [1, 0, 0.5, 1]]}, "boxes[1]", "bad_value"),
        ({"boxes": {}}, "boxes", "wrong_type"),
        ({"boxes": [[0, 0, 1, 1]], "voices": None, "audio_1": "a.wav"}, "boxes", "missing_field"),
        ({"boxes": [[0, 0, 1, 1]], "voices": None, "script": "a: b"}, "boxes", "missing_field"),
    ],
)
def test_wrong_boxes_are_named(values: dict[str, Any], field: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_job({"input": {**RECORDED, **values}})
    assert (caught.value.field, caught.value.code) == (field, code)


def test_wrong_region_of_a_numbered_voice_is_named_as_the_job_spells_it() -> None:
    error = refused(audio_2="b.wav", region_2={"box": [0.5, 0, 0.5, 1]})
    assert (error.field, error.code) == ("region_2.box", "bad_value")


def test_region_without_its_voice_is_refused() -> None:
    error = refused(region_2="auto")
    assert (error.field, error.code) == ("region_2", "missing_field")
    assert "audio_2" in error.what


def test_base64_is_taken_everywhere_an_address_is() -> None:
    text = "iVBORw0KGgoA" * 10
    asked = request(reference_image=text, audio_1=text, audio_2="b.wav", region_2={"mask": text})
    url = f"data:application/octet-stream;base64,{text}"
    assert (asked.image, asked.speakers[0].audio, asked.speakers[1].region.mask) == (url, url, url)


def test_broken_base64_is_refused_by_the_field_it_stands_in() -> None:
    text = "A" * 5001
    assert refused(reference_image=text).field == "reference_image"
    assert refused(audio_2=text).field == "audio_2"
    assert refused(region_1={"mask": text}).field == "region_1.mask"


# --- actions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["health", "capabilities", "selftest"])
def test_action_without_media_needs_none(action: str) -> None:
    job = parse_job({"input": {"action": action}})
    assert (job.action, job.request) == (action, None)


@pytest.mark.parametrize("action", ["generate", "plan"])
def test_action_with_media_needs_them(action: str) -> None:
    assert parse(action=action).request == request()
    with pytest.raises(RequestError) as caught:
        parse_job({"input": {"action": action}})
    assert caught.value.code == "missing_field"
    assert caught.value.field == "reference_image"
    assert "(also wrong: prompt, audio_1)" in caught.value.what


def test_health_check_answers_as_health() -> None:
    assert parse_job({"input": {"health_check": True}}) == parse_job({"input": {"action": "health"}})
    assert parse_job({"input": {"health_check": True, "action": "health"}}).action == "health"


def test_health_check_that_is_false_changes_nothing() -> None:
    assert parse(health_check=False) == parse()
    with pytest.raises(RequestError, match="missing"):
        parse_job({"input": {"health_check": False}})


def test_health_check_and_another_action_contradict() -> None:
    error = refused(health_check=True, action="plan")
    assert (error.field, error.code) == ("action", "conflict")


def test_health_still_refuses_what_it_does_not_know() -> None:
    with pytest.raises(RequestError, match="zebra"):
        parse_job({"input": {"action": "health", "zebra": 1}})


def test_sink_and_file_name_are_handed_on() -> None:
    job = parse(output={"sink": "base64", "filename": "anna.mp4"})
    assert (job.sink, job.filename) == ("base64", "anna.mp4")
    assert (parse().sink, parse().filename) == (None, None)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", ".hidden", "x" * 129, "a\n", 3])
def test_id_that_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(RequestError) as caught:
        parse_job({"id": name, "input": GOOD})
    assert caught.value.field == "id"


# --- the job's own keys -----------------------------------------------------------------------------------------------


def stored() -> ParsedJob:
    return parse_job({"id": "job-1", "input": GOOD, "s3Config": STORE})


def test_keys_are_given_out_by_open_alone() -> None:
    sealed = stored().credentials
    assert sealed is not None
    store = sealed.open()
    assert store.bucket == "films"
    keys = store.credentials
    assert (keys.access_key, keys.secret_key) == (STORE["accessId"], STORE["accessSecret"])
    assert (keys.session_token, keys.endpoint, keys.region) == (STORE["sessionToken"], STORE["endpointUrl"], None)


def test_keys_stand_in_no_view_of_the_job() -> None:
    job = stored()
    views = [repr(job), str(job), f"{job.credentials}", json.dumps(asdict(job), default=str), repr(asdict(job))]
    views += [repr(copy.deepcopy(job)), repr(vars(job)), repr(job.credentials and job.credentials.open().credentials)]
    assert not [view for view in views if SENTINEL in view]


def test_keys_are_not_written_down() -> None:
    with pytest.raises(TypeError):
        pickle.dumps(stored())


def test_media_stand_in_no_repr_of_the_job() -> None:
    assert "anna.png" not in repr(parse())


@pytest.mark.parametrize(
    "config",
    [
        SENTINEL,
        [SENTINEL],
        {**STORE, "accessSecret": [SENTINEL]},
        {**STORE, "accessId": ""},
        {**STORE, "bucketName": 3},
        {**STORE, "endpointUrl": f"ftp://{SENTINEL}"},
        {**STORE, "endpointUrl": f"https://user:{SENTINEL}@example.org"},
        {**STORE, "region": f"{SENTINEL} x"},
        {**STORE, SENTINEL: "x"},
        {**STORE, "accessSecrt": SENTINEL},
        {"accessId": SENTINEL},
    ],
)
def test_wrong_keys_are_refused_without_being_quoted(config: Any) -> None:
    with pytest.raises(RequestError) as caught:
        parse_job({"input": GOOD, "s3Config": config})
    error = caught.value
    assert error.field.startswith("s3Config")
    assert error.__cause__ is None
    assert error.__context__ is None
    # The traceback quotes lines of this test as well, which hold the name and not the text.
    assert SENTINEL not in "".join(traceback.format_exception(error)) + json.dumps(error_answer(error))


def test_misspelt_key_of_the_store_is_mended() -> None:
    with pytest.raises(RequestError, match="did you mean accessSecret"):
        parse_job({"input": GOOD, "s3Config": {**STORE, "accessSecrt": "x"}})


@pytest.mark.parametrize("name", ["s3config", "S3Config", "s3_config"])
def test_store_under_another_spelling_is_not_passed_over(name: str) -> None:
    with pytest.raises(RequestError, match="did you mean s3Config"):
        parse_job({"input": GOOD, name: STORE})


@pytest.mark.parametrize("nothing", [None, {}])
def test_store_with_nothing_in_it_is_none(nothing: Any) -> None:
    assert parse_job({"input": GOOD, "s3Config": nothing}).credentials is None


def test_store_inside_the_input_is_sent_outside() -> None:
    error = refused(s3Config=STORE)
    assert error.hint == "s3Config belongs beside input, not in it"
    assert SENTINEL not in str(error)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("request.image", "reference_image"),
        ("request.frames", "num_frames"),
        ("request.filename", "output.filename"),
        ("request.prompt", "prompt"),
        ("request.store", "s3Config"),
        ("request.speakers[0].audio", "audio_1"),
        ("request.speakers[1].region.box", "region_2.box"),
        ("overrides (resolution)", "resolution"),
        ("overrides (sampler.steps)", "sampling_steps"),
        ("sampler.steps", "sampling_steps"),
        ("guidance.audio_scale", "audio_guidance_scale"),
        ("overrides (cache.threshold)", "overrides (cache.threshold)"),
        ("overrides", "overrides"),
        ("sink", "sink"),
        ("", ""),
    ],
)
def test_inputs_are_told_as_the_job_calls_them(engine: str, told: str) -> None:
    assert caller_field(engine, parse(audio_2="b.wav").fields) == told


def test_speakers_and_own_overrides_keep_their_names() -> None:
    fields = {"reference_image": "a.png", "prompt": "x", "speakers": SPEAKERS, "overrides": ["sampler.steps=5000"]}
    job = parse_job({"input": fields})
    assert caller_field("request.speakers[1].region.mask", job.fields) == "speakers[1].region.mask"
    assert caller_field("overrides (sampler.steps)", job.fields) == "overrides (sampler.steps)"


def test_jobs_need_no_torch() -> None:
    code = (
        "import sys; from engine.serving.jobs import answers, document, job; "
        "job.parse_job({'input': {'action': 'health'}}); print('torch' in sys.modules, 'hydra' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]
