"""Encoded clips, the transformer's trainer and the assembled folder, all on toy sizes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from transformers import AutoTokenizer, Wav2Vec2Config, Wav2Vec2Model

from engine.data import EncodeOptions, Inputs, Window
from engine.media.color import color_statistics
from engine.stages.encode import Conditioning, Texts, to_pixels
from plugins.families.multitalk.conditions import encode
from plugins.families.multitalk.model import load_multitalk
from plugins.families.multitalk.transformer import MultiTalkTransformer3DModel
from scripts.train_tiny import transformer, vae
from scripts.train_tiny.assemble import assemble
from scripts.train_tiny.clips import make_clip
from scripts.train_tiny.examples import (
    ON_MOUTH,
    ON_STILL,
    ClipUse,
    Example,
    draw_case,
    draw_shares,
    loss_weights,
    make_example,
)
from scripts.train_tiny.latents import ClipShape, Sample, Samples, plan, prepare, write_shard
from scripts.train_tiny.muon import Muon
from scripts.train_tiny.networks import (
    IMAGE,
    TEXT,
    TRANSFORMER,
    Configs,
    Network,
    make_tokenizer,
    tokenize,
)
from scripts.train_tiny.speech import Split, synthetic
from scripts.train_tiny.stepcache import changes, fit
from scripts.train_tiny.transformer import losses, predict, train
from scripts.train_tiny.turbo import Teacher
from scripts.train_tiny.vae import ON_SKIN

SIZE = (64, 32)
TOY = Configs(
    transformer=TRANSFORMER
    | {
        "attention_head_dim": 8,
        "num_layers": 1,
        "ffn_dim": 32,
        "freq_dim": 16,
        "text_dim": 16,
        "image_dim": 16,
        "image_tokens": 5,
        "added_kv_proj_dim": None,
        "audio_layers": 2,
        "audio_channels": 16,
        "audio_intermediate_dim": 16,
        "audio_output_dim": 16,
    },
    text=TEXT | {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1},
    image=IMAGE
    | {"hidden_size": 16, "intermediate_size": 16, "projection_dim": 16, "image_size": 32, "patch_size": 16},
    vocabulary=300,
)


def shape(seed: int, _split: Split) -> ClipShape:
    """17 frames; every second clip begins three frames after its picture, at another rate."""
    late = seed % 2
    return ClipShape(size=SIZE, frames=17, fps=12.5 if late else 25.0, offset=3 * late, motion=9)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of encoded clips: seeds 0 to 3 for training, one held out; encoders with random weights."""
    folder = tmp_path_factory.mktemp("encoded")
    torch.manual_seed(0)
    AutoencoderKLWan(**(vae.CONFIG | {"base_dim": 4, "dim_mult": [1, 2, 4]})).save_pretrained(folder / "vae")
    Wav2Vec2Model(
        Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            conv_dim=(8, 8, 8, 8, 8, 8, 8),
            feat_extract_norm="layer",
            conv_bias=True,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    ).save_pretrained(folder / "audio_encoder")
    out = folder / "latents"
    encoders = prepare(out, folder / "vae", folder / "audio_encoder")
    assert write_shard(out, *encoders, (0, 1, 2, 3), "train", speak=synthetic, shape_of=shape)
    assert write_shard(out, *encoders, (5,), "held_out", speak=synthetic, shape_of=shape)
    return out


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps of training."""
    run = tmp_path_factory.mktemp("run")
    train(run, data, steps=2, accumulate=2, configs=TOY)
    return run


def two_people(data: Path) -> Sample:
    return next(sample for sample in Samples(data, "train") if len(sample.voices) == 2)


def example_of(sample: Sample, case: ClipUse) -> Example:
    return make_example(sample, case, np.random.default_rng(0), torch.Generator().manual_seed(0))


def test_every_planned_window_leaves_something_to_make() -> None:
    for planned in map(plan, range(200)):
        assert planned.frames % 4 == planned.motion % 4 == 1
        assert planned.motion + 8 <= planned.frames
        assert all(side % 16 == 0 for side in planned.size)
        assert 8 <= planned.fps <= 30


def test_a_shard_that_is_there_is_not_made_again(data: Path) -> None:
    encoders = prepare(data, data.parent / "vae", data.parent / "audio_encoder")
    assert not write_shard(data, *encoders, (0, 1, 2, 3), "train", speak=synthetic, shape_of=shape)
    with pytest.raises(ValueError, match="other seeds"):
        write_shard(data, *encoders, (0, 1), "train", speak=synthetic, shape_of=shape)


def test_latents_of_two_autoencoders_do_not_mix(data: Path, tmp_path: Path) -> None:
    AutoencoderKLWan(**(vae.CONFIG | {"base_dim": 4, "dim_mult": [1, 2, 4]})).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="other encoders"):
        prepare(data, tmp_path, data.parent / "audio_encoder")


def test_latents_stay_valid_where_only_the_decoder_is_trained(data: Path, tmp_path: Path) -> None:
    model = AutoencoderKLWan.from_pretrained(data / "vae", torch_dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vae.hold_encoder(model)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 5, 32, 32, generator=generator) * 2 - 1
    loss, _ = vae.loss_of(model, pixels, torch.ones(2, 1, 5, 32, 32), 0.05, generator)
    torch.autograd.backward(loss)
    Muon(model, 0.01, betas=(0.9, 0.99), weight_decay=0.1).step()
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {name.split(".")[0] for name in changed} == {"decoder", "post_quant_conv"}
    model.save_pretrained(tmp_path)
    prepare(data, tmp_path, data.parent / "audio_encoder")


def test_the_sign_of_a_zero_makes_no_other_encoder(data: Path, tmp_path: Path) -> None:
    model = AutoencoderKLWan.from_pretrained(data / "vae", torch_dtype=torch.float32)
    for name, zero in (("one", -0.0), ("same", 0.0)):
        with torch.no_grad():
            model.encoder.conv_in.bias.fill_(zero)
        model.save_pretrained(tmp_path / name)
    prepare(tmp_path / "out", tmp_path / "one", data.parent / "audio_encoder")
    prepare(tmp_path / "out", tmp_path / "same", data.parent / "audio_encoder")


@pytest.mark.slow
def test_every_other_clip_of_the_autoencoder_shows_a_certain_skin() -> None:
    clips = vae.ClipPool(5, seed=1, skin=4, speak=synthetic).clips
    assert all(4 in clip.skins for clip in clips[::2])
    assert not all(4 in clip.skins for clip in clips[1::2])


def test_a_window_that_continues_begins_as_the_window_itself(data: Path) -> None:
    for sample in Samples(data, "train"):
        # bfloat16 rounds to 3 digits; latents of this network are of size 0.1 to 1.
        torch.testing.assert_close(sample.continued[:, :3], sample.latents[:, :3], atol=0.01, rtol=0.01)
        alike = torch.allclose(sample.reference[:, 0], sample.latents[:, 0], atol=0.01, rtol=0.01)
        assert alike == (sample.facts.plan.offset == 0)


def test_mouths_are_marked_where_they_are_drawn(data: Path) -> None:
    sample = Samples(data, "train")[0]
    clip = make_clip(0, frames=17, size=SIZE, speak=synthetic)
    for x0, y0, x1, y1 in clip.mouth_boxes[:, 16]:
        assert sample.mouths[4, int((y0 + y1) / 16), int((x0 + x1) / 16)] == 1
    assert sample.mouths.float().mean() < 0.5


def test_still_mouths_weigh_most_and_faces_more_than_what_is_behind_them(data: Path) -> None:
    sample = two_people(data)
    boxes = torch.tensor([[8.0, 8.0, 32.0, 32.0], [40.0, 8.0, 64.0, 32.0]])
    mouths = torch.zeros_like(sample.mouths)
    mouths[:, 3, 2] = mouths[:, 3, 6] = 1
    facts = replace(sample.facts, skins=(0, 5), silent=(True, False))
    weights = loss_weights(replace(sample, facts=facts, boxes=boxes, mouths=mouths))
    still, speaking, face, behind = (float(weights[1, y, x]) for y, x in ((3, 2), (3, 6), (1, 1), (0, 0)))
    assert (still, speaking) == (ON_MOUTH * ON_SKIN[0] * ON_STILL, ON_MOUTH * ON_SKIN[5])
    assert still > speaking > face > behind == 1


def test_history_is_given_as_the_engine_gives_it(data: Path) -> None:
    sample = two_people(data)
    first = example_of(sample, ClipUse("first", 5, 0, 0.5))
    continued = example_of(sample, ClipUse("continued", 5, 3, 0.5))
    clean = example_of(sample, ClipUse("clean", 5, 3, 0.5))
    assert torch.equal(
        first.inputs, torch.cat([continued.inputs[:, : vae.CHANNELS], first.inputs[:, vae.CHANNELS :]], dim=1)
    )
    assert torch.equal(clean.inputs[0, : vae.CHANNELS, :3], sample.latents[:, :3])
    assert torch.equal(clean.inputs[0, : vae.CHANNELS, 3:], first.inputs[0, : vae.CHANNELS, 3:])
    assert [example.weights.amin(dim=(1, 2)).bool().tolist() for example in (first, continued, clean)] == [
        [True] * 5,
        [False] * 3 + [True] * 2,
        [False] * 3 + [True] * 2,
    ]
    assert [
        example.inputs[0, vae.CHANNELS : vae.CHANNELS + 4, :, 0, 0].sum().item()
        for example in (first, continued, clean)
    ] == [4, 12, 4]


def test_the_target_leads_from_the_noisy_to_the_true_latents(data: Path) -> None:
    sample = two_people(data)
    example = example_of(sample, ClipUse("first", 5, 0, 0.7))
    torch.testing.assert_close(example.inputs[0, : vae.CHANNELS] - 0.7 * example.target, sample.latents)
    assert example.timestep.item() == pytest.approx(700)


def test_exchanged_speakers_keep_their_boxes(data: Path) -> None:
    sample = two_people(data)
    there, back = (
        example_of(sample, ClipUse("first", 5, 0, 0.5, boxes=True, exchanged=exchanged)) for exchanged in (False, True)
    )
    assert there.windows is not None
    assert back.windows is not None
    assert there.masks is not None
    assert back.masks is not None
    assert torch.equal(there.windows, back.windows.flip(0))
    columns = torch.arange(8.0)
    left, right = ((there.masks[i].mean(dim=0) * columns).sum() / there.masks[i].mean(dim=0).sum() for i in (0, 1))
    assert left < right
    first, second = ((back.masks[i].mean(dim=0) * columns).sum() / back.masks[i].mean(dim=0).sum() for i in (0, 1))
    assert first > second


def test_cases_take_a_tenth_of_all_clips_without_audio(data: Path) -> None:
    facts = two_people(data).facts
    rng = np.random.default_rng(0)
    cases = [draw_case(facts, "first", 0.5, rng) for _ in range(2000)]
    # Three standard deviations of 2000 draws are 0.02.
    assert np.mean([not case.audio for case in cases]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([case.prompt is not None for case in cases]) == pytest.approx(0.1, abs=0.02)
    assert all(0 < case.sigma < 1 for case in cases)


def test_dark_slow_silent_and_lively_clips_are_drawn_more_often(data: Path) -> None:
    usual = two_people(data).facts
    usual = replace(usual, skins=(0, 1), silent=(False, False), plan=replace(usual.plan, fps=25.0))
    usual = replace(usual, attributes=usual.attributes | {"energy": "calm"})
    fast = replace(usual, plan=replace(usual.plan, fps=30.0))
    harder = [
        replace(usual, skins=(0, 5)),
        replace(usual, silent=(False, True)),
        replace(usual, plan=replace(usual.plan, fps=8.0)),
        replace(usual, attributes=usual.attributes | {"energy": "lively"}),
    ]
    shares = draw_shares([usual, fast, *harder])
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == shares[1]
    assert (shares[2:] > 1.4 * shares[0]).all()


def test_an_error_of_all_cells_is_one_of_colour_and_one_that_alternates_is_not(data: Path) -> None:
    example = example_of(two_people(data), ClipUse("continued", 5, 1, 0.5))
    signs = torch.ones(example.weights.shape[1:])
    signs.view(-1)[::2] = -1
    alike, other = (losses(example.target + 0.1 * error, example) for error in (torch.ones(()), signs))
    assert alike[0].item() == pytest.approx(0.01, rel=1e-3)
    assert other[0].item() == pytest.approx(0.01, rel=1e-3)
    assert alike[1].item() == pytest.approx(0.01, rel=1e-3)
    assert other[1].item() < 1e-6


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = make_tokenizer(["Two people talk in a café, cheerful."] * 3, 400)
    for text in ("Two people talk in a café, cheerful.", "二人が話す 🙂", "\u0000\u07ff\U0010ffff"):
        tokens = tokenizer(text).input_ids
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(tokens[:-1]) == text


def test_training_moves_every_part_and_reports(trained: Path) -> None:
    row = json.loads((trained / "transformer.jsonl").read_text("utf-8").splitlines()[-1])
    assert row["step"] == 2
    assert {"loss", "mouth", "told", "shown", "val", "val_mouth", "val_mouth_silent"} <= set(row)
    state = torch.load(trained / "transformer.pt", weights_only=True)
    moved = {
        name.split(".")[0]
        for name, tensor in state["network"].items()
        if not torch.equal(tensor, state["average"][name])
    }
    assert {"transformer", "text_encoder", "image_encoder", "told", "shown"} <= moved


def test_a_resumed_training_is_the_one_that_did_not_stop(trained: Path, data: Path, tmp_path: Path) -> None:
    train(tmp_path, data, steps=2, accumulate=2, minutes=0, configs=TOY)
    assert torch.load(tmp_path / "transformer.pt", weights_only=True)["step"] == 1
    train(tmp_path, data, steps=2, accumulate=2, configs=TOY)
    straight, resumed = (
        torch.load(run / "transformer.pt", weights_only=True)["average"] for run in (trained, tmp_path)
    )
    for name, tensor in straight.items():
        # One thread, one order of operations: nothing may differ.
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.slow
def test_a_training_that_settles_continues_more_and_weighs_colours_more(
    trained: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = two_people(data).facts
    facts = replace(facts, plan=replace(facts.plan, frames=81))
    lengths = {draw_case(facts, "continued", 1.0, np.random.default_rng(seed)).length for seed in range(20)}
    assert lengths == {21}  # whole: 81 frames in groups of four, the first one alone

    def trained_so(name: str, *, settle: bool) -> float:
        train(tmp_path / name, data, steps=2, accumulate=8, configs=TOY, start=trained, settle=settle)
        row = json.loads((tmp_path / name / "transformer.jsonl").read_text("utf-8").splitlines()[-1])
        return float(row["val_colour"])

    usual, settled = trained_so("usual", settle=False), trained_so("settled", settle=True)
    monkeypatch.setattr(transformer, "ON_SETTLED", transformer.ON_COLOUR)
    # Other modes are drawn, and then the same ones weigh colours otherwise.
    assert len({usual, settled, trained_so("light", settle=True)}) == 3
    assert sum(transformer.SETTLED.values()) == pytest.approx(1)
    learnt = torch.load(tmp_path / "settled" / "transformer.pt", weights_only=True)["average"]
    began, saved = (
        MultiTalkTransformer3DModel.from_pretrained(folder / "transformer").state_dict()
        for folder in (trained, tmp_path / "settled")
    )
    for name, tensor in saved.items():
        mean = (began[name].float() + learnt[f"transformer.{name}"]) / 2
        assert torch.equal(tensor, mean.half().to(tensor.dtype)), name
    with pytest.raises(ValueError, match="give start"):
        train(tmp_path / "none", data, steps=1, configs=TOY, settle=True)


def test_the_assembled_folder_is_conditioned_as_in_training(trained: Path, data: Path, tmp_path: Path) -> None:
    size = assemble(tmp_path / "tiny", run=trained, data=data)
    assert size == sum(path.stat().st_size for path in (tmp_path / "tiny").rglob("*") if path.is_file())
    model = load_multitalk(tmp_path / "tiny", device="cpu", dtype="float32")
    sample = two_people(data)
    assert sample.facts.plan == shape(0, "train")
    example = example_of(sample, ClipUse("first", 5, 0, 0.5))
    assert example.masks is not None
    picture = sample.pictures[0].numpy()
    colors = color_statistics(to_pixels(picture))
    conditions = encode(
        model,
        Inputs(image=picture, voices=(), masks=example.masks.numpy(), sound=np.zeros((0, 2), "f4")),
        Window(index=0, start=0, frames=17, motion=0, keep=17),
        Conditioning(Texts(model.text.encode(example.prompt), None), sample.voices, colors),
        EncodeOptions(branches=("cond",), style="multitalk", fps=25.0, native_fps=25.0),
        history=None,
    )
    # Stored latents were rounded to bfloat16 on their way.
    torch.testing.assert_close(conditions.latents, example.inputs[0, vae.CHANNELS :], atol=0.01, rtol=0.01)
    tokenizer = AutoTokenizer.from_pretrained(trained / "tokenizer")
    network = Network(TOY, binding=True, pad=tokenizer.pad_token_id, end=tokenizer.eos_token_id)
    network.load_state_dict(torch.load(trained / "transformer.pt", weights_only=True)["average"])
    # The folder's numbers are float16: three digits.
    with torch.no_grad():
        torch.testing.assert_close(
            model.text.encode(example.prompt),
            network.read(tokenize(tokenizer, [example.prompt])),
            atol=0.01,
            rtol=0.01,
        )
        torch.testing.assert_close(
            model.image.encode(example.picture), network.look(example.picture), atol=0.01, rtol=0.01
        )
        inside = model.transformer(
            hidden_states=example.inputs,
            timestep=example.timestep,
            conditions=conditions.branches["cond"],
            return_dict=False,
        )[0][0]
        torch.testing.assert_close(inside, predict(network, tokenizer, example), atol=0.01, rtol=0.01)


def test_the_time_embedding_changes_alike_whatever_is_drawn(trained: Path, data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(trained / "tokenizer")
    network = Network(TOY, binding=True, pad=tokenizer.pad_token_id, end=tokenizer.eos_token_id)
    one, other = (changes(Teacher(network, tokenizer), two_people(data), 4, 3.0, seed) for seed in (0, 1))
    assert [signal for signal, _ in one] == [signal for signal, _ in other]
    assert [output for _, output in one] != [output for _, output in other]
    assert len(one) == 3
    assert all(signal > 0 and output > 0 for signal, output in one)


def test_the_step_caches_polynomial_is_found_again() -> None:
    result = fit([(x, 2 * x * x + 0.5 * x + 0.01) for x in np.linspace(0.01, 0.3, 20)])
    np.testing.assert_allclose(result["teacache"], [2, 0.5, 0.01], rtol=1e-4)
    assert result["error"] < 1e-4
    assert (result["from"], result["to"]) == (0.01, 0.3)


def test_a_decoder_that_was_trained_further_keeps_the_statistics(trained: Path, data: Path, tmp_path: Path) -> None:
    further = AutoencoderKLWan.from_pretrained(data / "vae")
    with torch.no_grad():
        further.decoder.conv_out.bias.fill_(0.25)
    further.register_to_config(latents_mean=[0.5] * vae.CHANNELS)
    further.save_pretrained(tmp_path / "vae")
    assemble(tmp_path / "tiny", run=trained, data=data, vae=tmp_path / "vae")
    model = AutoencoderKLWan.from_pretrained(tmp_path / "tiny" / "vae", torch_dtype=torch.float32)
    assert set(model.decoder.conv_out.bias.tolist()) == {0.25}
    assert model.config.latents_mean == [0.0] * vae.CHANNELS


def test_another_encoder_is_not_assembled(trained: Path, data: Path, tmp_path: Path) -> None:
    AutoencoderKLWan(**(vae.CONFIG | {"base_dim": 4, "dim_mult": [1, 2, 4]})).save_pretrained(tmp_path / "vae")
    with pytest.raises(ValueError, match="is not the one"):
        assemble(tmp_path / "tiny", run=trained, data=data, vae=tmp_path / "vae")
