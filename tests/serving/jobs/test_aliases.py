"""Fields by the names that other workers and tools use are refused with the name that they have here."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.errors import RequestError
from engine.serving.jobs.aliases import _ADVICE_FOR, _FIELDS, find_alias
from engine.serving.jobs.job import parse_job
from engine.serving.jobs.schema import job_schema

GOOD = {"reference_image": "https://example.org/a.png", "audio_1": "https://example.org/a.wav", "prompt": "she speaks"}
FIELDS = tuple(job_schema()["$defs"]["input"]["properties"])


def refused(job: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse_job(job)
    return caught.value


@pytest.mark.parametrize(
    ("near", "names"),
    [
        (
            "reference_image",
            (
                "image image_url image_base64 image_b64 imageUrl image_path img img_url input_image source_image "
                "ref_image init_image start_image first_frame photo picture portrait avatar_url face_image cond_image "
                "image_data image_uri reference_image_url referenceImage"
            ),
        ),
        (
            "audio_1",
            (
                "audio audio_url audio_base64 wav wav_url wav_path wav_base64 voice voice_url speech driven_audio "
                "input_audio "
                "audio_path audioUrl audio_file cond_audio person1 audio1 audio_1_url audio_url_1 speaker_1 "
                "sound_file vocals"
            ),
        ),
        ("audio_2", "audio2 audio_url_2 wav_url_2 person2 wav_path_2 audio_2_base64 wav_base64_2 voice2 speaker2"),
        ("prompt", "promt text caption positive positive_prompt input_prompt text_prompt description"),
        ("negative_prompt", "negative neg_prompt n_prompt negativePrompt negative_text"),
        (
            "sampling_steps",
            "steps num_inference_steps inference_steps sample_steps num_steps infer_steps sampling_step n_steps",
        ),
        ("guidance_scale", "cfg cfg_scale guidance text_guide_scale sample_text_guide_scale text_cfg guide_scale"),
        ("audio_guidance_scale", "audio_cfg audio_guide_scale sample_audio_guide_scale audio_scale audio_cfg_scale"),
        ("num_frames", "length frames frame_num num_frame max_frame_num video_length total_frames duration seconds"),
        ("num_frames", "duration_seconds audio_duration max_duration video_duration"),
        ("resolution", "width height size aspect_ratio video_size quality image_size"),
        ("fps", "frame_rate framerate video_fps"),
        ("seed", "base_seed noise_seed random_seed manual_seed"),
        ("turbo", "fast lightning turbo_mode"),
        ("sampler=", "sampler scheduler sample_solver sampler_name"),
        ("sampler.shift", "shift sample_shift flow_shift"),
        ("cache=teacache", "teacache use_teacache"),
        ("guidance=apg", "use_apg"),
        ("continuation.frames", "motion_frame motion_frames overlap"),
        ("MULTITALK_OVERRIDES", "model lora loras lora_scale dtype quant checkpoint force_offload"),
        ("beside input", "webhook policy s3Config"),
        ("reference_video", "video_url video input_video source_video cond_video driving_video"),
        ("one video", "batch_size num_videos num_outputs"),
        ("region_1", "bbox face_box mask mask_image mask_url"),
        ("speakers", "persons"),
        ("output", "output_path save_file output_filename"),
        ("disk", "network_volume"),
        ("MP4", "output_format format"),
    ],
)
def test_a_name_of_another_tool_is_refused_with_what_it_is_here(near: str, names: str) -> None:
    for name in names.split():
        error = refused({"input": {**GOOD, name: 1}})
        assert error.field == name
        assert error.code == "unknown_field"
        assert near in error.hint, (name, error.hint)
        assert not error.hint.startswith("known: "), name


@pytest.mark.parametrize(
    ("job", "hint"),
    [
        ({"speakers": [{"audio_url": "https://a.org/a.wav"}]}, "did you mean audio?"),
        ({"speakers": [{"wav": "https://a.org/a.wav"}]}, "did you mean audio?"),
        ({"speakers": [{"audio": "https://a.org/a.wav", "bbox": [0, 0, 1, 1]}]}, "did you mean region?"),
        ({"speakers": [{"mute": True}]}, "did you mean silence?"),
        ({"speakers": [{"silence": True, "region": {"bbox": [0, 0, 1, 1]}}]}, "did you mean box?"),
        ({"speakers": [{"silence": True, "region": {"mask_url": "https://a.org/a.png"}}]}, "did you mean mask?"),
        ({"output": {"name": "a.mp4"}}, "did you mean filename?"),
        ({"output": {"type": "s3"}}, "did you mean sink?"),
    ],
)
def test_names_inside_a_field_are_suggested_too(job: dict[str, Any], hint: str) -> None:
    given = {**GOOD, **job}
    if "speakers" in job:
        del given["audio_1"]
    assert refused({"input": given}).hint == hint


def test_names_of_a_stores_keys_are_suggested_without_their_values() -> None:
    keys = {"accessKeyId": "AKIASECRET", "secretAccessKey": "s3cr3t", "bucket": "films"}
    error = refused({"input": GOOD, "s3Config": keys})
    assert error.hint == "did you mean accessId?"
    assert "s3cr3t" not in str(error)


@pytest.mark.parametrize("name", [*_FIELDS, *_ADVICE_FOR])
def test_every_name_of_the_table_leads_somewhere(name: str) -> None:
    known = [
        tuple(part["properties"])
        for part in (
            *(job_schema()["$defs"][name] for name in ("input", "speaker", "output", "s3Config")),
            job_schema()["$defs"]["region"]["else"],
        )
    ]
    assert any(any(find_alias(name, fields)) for fields in known)


def test_no_name_of_the_table_is_a_field_here() -> None:
    # But for the one that stands for `audio_url_2` and its like.
    assert {field.replace("_", "") for field in FIELDS} & {*_FIELDS, *_ADVICE_FOR} == {"audio2"}


@pytest.mark.parametrize("inner", [GOOD, json.dumps(GOOD), []])
def test_an_input_in_the_input_is_one_too_many(inner: Any) -> None:
    error = refused({"input": {"input": inner}})
    assert error.field == "input"
    assert "input is nested in input" in error.hint
    assert '{"input": {"prompt": ...}}' in error.hint


@pytest.mark.parametrize("text", [json.dumps(GOOD), " " + json.dumps(GOOD, indent=2), json.dumps(GOOD)[:-5]])
def test_an_input_that_is_json_text_is_named_as_that(text: str) -> None:
    assert str(refused({"input": text})) == (
        "input: a string that holds JSON is not an object; give an object: the value itself, without quotes around it"
    )
    assert "the job is a string that holds JSON" in str(refused(json.dumps({"input": text})))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_frames", "100"),
        ("fps", "25"),
        ("turbo", "true"),
        ("seed", " 7 "),
        ("overrides", '["cache=none"]'),
        ("region_1", '{"box": [0, 0, 1, 1]}'),
        ("output", '{"sink": "s3"}'),
    ],
)
def test_a_value_in_quotes_is_told_to_come_without_them(field: str, value: str) -> None:
    error = refused({"input": {**GOOD, field: value}})
    assert error.code in ("wrong_type", "unknown_choice")
    if field != "region_1":
        assert error.hint.endswith(": the value itself, without quotes around it")
