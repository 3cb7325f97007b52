"""The studio's page, laid out with Gradio. What its values mean is in the other modules of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from engine.client import ClientError
from engine.errors import EngineError
from engine.redaction import scrub
from engine.serving.studio.dialogue import names_of
from engine.serving.studio.examples import EXAMPLES
from engine.serving.studio.fields import SCRIPT, FieldError, equal_boxes
from engine.serving.studio.form import Form, read_form
from engine.serving.studio.look import FOCUS, HEAD, heading, read, small_picture, theme
from engine.serving.studio.people import editor_people, found_boxes, named_boxes, people_of, with_names
from engine.serving.studio.plan_table import plan_html
from engine.serving.studio.recipe import form_of
from engine.serving.studio.studio import Studio
from engine.serving.studio.voices_part import PEOPLE, VoicesPart

#: Fields with a place for an error beside them, and those of them in the part that is closed at first.
_MORE = ("steps", "guidance", "audio_guidance", "fps", "seed")
_FIELDS = (
    "picture", "people", "recording", "script", *(f"voice{number}" for number in PEOPLE), "prompt", "seconds",
    "resolution", *_MORE, "",
)  # fmt: skip
_NO_PLAN = "Add a picture and voices to see length, time and price."


def build(studio: Studio, read_recipe: Callable[[Path], Mapping[str, Any]]) -> tuple[gr.Blocks, dict[str, Any]]:
    """Return the page, and how it looks: keyword arguments of Gradio's `mount_gradio_app`."""
    return _Page(studio, read_recipe).blocks, {"theme": theme(), "css": read("studio.css"), "head": HEAD}


class _Page:
    def __init__(self, studio: Studio, read_recipe: Callable[[Path], Mapping[str, Any]]) -> None:
        self._studio, self._read_recipe = studio, read_recipe
        self._ask()
        self._errors: dict[str, gr.HTML] = {}
        with gr.Blocks(title="MultiTalk studio", analytics_enabled=False) as self.blocks:
            self._layout()
            self._events()

    # --- layout -------------------------------------------------------------------------------------------------------

    def _layout(self) -> None:
        self.heading = gr.HTML(heading(self._studio, self._known, self._trouble), elem_id="heading")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=320):
                self._people_part()
                self._words_part()
                self.plan = gr.HTML(f"<p class=note>{_NO_PLAN}</p>", elem_id="plan")
                self._error("")
                self.make = gr.Button("Make the video", variant="primary", elem_id="make")
            with gr.Column(scale=4, min_width=320):
                self.videos = gr.HTML(
                    value={"job": "", "load": ""},
                    html_template="<div class='videos'></div>",
                    js_on_load=read("player.js", "engine.serving") + read("videos.js"),
                    elem_id="videos",
                )

    def _people_part(self) -> None:
        names = [example.title for example in EXAMPLES]
        with gr.Row(elem_id="examples"):
            self.examples = [gr.Button(f"Example: {name}", size="sm", variant="secondary") for name in names]
        self.picture = gr.Image(
            label="Picture", type="filepath", sources=["upload", "webcam", "clipboard"], height=260,
            elem_id="picture", buttons=[], image_mode=None,
        )  # fmt: skip
        self._error("picture")
        self.boxes = gr.HTML(
            value=named_boxes(equal_boxes(1)),
            html_template="<div class='boxes'></div>",
            js_on_load=read("boxes.js"),
            elem_id="boxes",
            src="",
        )
        self._error("people")
        self.voices = VoicesPart(self._known, self._error)

    def _words_part(self) -> None:
        known = self._known
        self.prompt = gr.Textbox(
            label="Prompt", info="What the video shows", placeholder="A woman speaks.", lines=2, elem_id="prompt",
            max_length=10_000,
        )  # fmt: skip
        self._error("prompt")
        rate = known.get("fps", 25)
        with gr.Row():
            self.seconds = gr.Number(
                label="Length in seconds", info="Empty: as long as the voices", value=None, step=0.1, elem_id="seconds"
            )
            self.resolution = gr.Dropdown(
                [(f"{known.get('resolution', '')} (default)", ""), *((one, one) for one in self._resolutions)],
                value="", label="Resolution", elem_id="resolution",
            )  # fmt: skip
        self._error("seconds")
        self._error("resolution")
        self.turbo = gr.Checkbox(label="Turbo: few steps, faster", value=False, elem_id="turbo")
        with gr.Accordion("More settings", open=False, elem_id="more") as self.more:
            self.negative = gr.Textbox(
                label="Negative prompt", info="What the video should not show. Empty: the model's own",
                elem_id="negative_prompt", max_length=10_000,
            )  # fmt: skip
            with gr.Row():
                self.steps = gr.Number(label="Steps", info="Empty: the model's own", value=None, elem_id="steps")
                self.guidance = gr.Number(
                    label="Guidance by the prompt", info="Empty: the model's own", value=None, elem_id="guidance"
                )
                self.audio_guidance = gr.Number(
                    label="Guidance by the voice", info="Empty: the model's own", value=None, elem_id="audio_guidance"
                )
            for name in ("steps", "guidance", "audio_guidance"):
                self._error(name)
            with gr.Row():
                self.fps = gr.Number(label="Frames per second", info=f"Empty: {rate:g}", value=None, elem_id="fps")
                self.seed = gr.Number(label="Seed", info="Empty: a new one each time", value=None, elem_id="seed")
            for name in ("fps", "seed"):
                self._error(name)
            self.recipe = gr.File(
                label="Load settings from a video of the engine", file_types=[".mp4"], type="filepath",
                elem_id="recipe", height=110,
            )  # fmt: skip
            self.told = gr.HTML("", elem_id="told")

    def _error(self, name: str) -> None:
        self._errors[name] = gr.HTML("", elem_id=f"error-{name or 'form'}", elem_classes="error-place")

    def _ask(self) -> None:
        try:
            self._known: Mapping[str, Any] = self._studio.backend.capabilities()
            self._trouble = ""
        except ClientError as error:
            self._known, self._trouble = {}, scrub(str(error))
        self._resolutions = [str(one) for one in self._known.get("resolutions", ())]

    def _sizes(self) -> Any:
        known = str(self._known.get("resolution", ""))
        return gr.Dropdown([(f"{known} (default)", ""), *((one, one) for one in self._resolutions)])

    # --- events -------------------------------------------------------------------------------------------------------

    def _events(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        values, voices = self._inputs(), self.voices
        # Gradio 6.31 shows 0 in number fields that are empty when the page is built.
        numbers = [self.seconds, self.fps, self.steps, self.guidance, self.audio_guidance, self.seed]
        self.blocks.load(lambda: [None] * len(numbers), None, numbers, **quiet)
        self.blocks.load(self._known_again, None, [self.heading, self.resolution, *voices.offers], **quiet)
        self.picture.change(lambda picture: gr.HTML(src=small_picture(picture)), [self.picture], [self.boxes], **quiet)
        # Only for a picture that the person gives: loaded settings have their own boxes.
        self.picture.input(self._found, [self.picture], [self.boxes], **quiet)
        gr.on(
            [self.boxes.change, voices.source.change, voices.script.change, *(kind.change for kind in voices.kinds)],
            lambda boxes, source, script, *kinds: voices.arrange(people_of(boxes), source, script, kinds),
            [self.boxes, voices.source, voices.script, *voices.kinds], voices.shown, **quiet,
        )  # fmt: skip
        voices.script.blur(self._named, [voices.script, self.boxes], [self.boxes], **quiet)
        # The plan follows every change; of changes while one is made, only the last is planned.
        gr.on(
            [component.change for component in values], self._planned, values, [self.plan],
            trigger_mode="always_last", concurrency_limit=2, **quiet,
        )  # fmt: skip
        places = [*(self._errors[name] for name in _FIELDS), self.more]
        self.make.click(self._start, values, [self.videos, *places], concurrency_limit=2, **quiet).then(
            None, None, None, js=FOCUS, **quiet
        )
        form = [self.boxes, *values[:1], *values[2:]]
        for button, example in zip(self.examples, EXAMPLES, strict=True):
            button.click(lambda chosen=example: self._filled(chosen.form()), None, form, **quiet)
        self.recipe.upload(self._recipe, [self.recipe], [*form, self.told], **quiet)
        self.videos.select(self._load, [self.videos], form, **quiet)
        # A job that this page started has failed.
        self.videos.submit(self._failed, [self.videos], places, **quiet).then(None, None, None, js=FOCUS, **quiet)

    def _inputs(self) -> list[Any]:
        """The components of the form, in the order of `_form`."""
        return [
            self.picture, self.boxes, *self.voices.inputs, self.prompt, self.negative, self.seconds, self.fps,
            self.resolution, self.steps, self.guidance, self.audio_guidance, self.turbo, self.seed,
        ]  # fmt: skip

    def _form(self, *values: Any) -> Form:
        picture, boxes, *rest = values
        count = len(self.voices.inputs)
        prompt, negative, seconds, fps, resolution, steps, guidance, audio_guidance, turbo, seed = rest[count:]
        return Form(
            picture, **self.voices.read(people_of(boxes), rest[:count]), prompt=prompt or "",
            negative_prompt=negative or "", seconds=seconds, fps=fps, resolution=resolution or "", steps=steps,
            guidance=guidance, audio_guidance=audio_guidance, turbo=bool(turbo), seed=seed,
        )  # fmt: skip

    def _filled(self, form: Form) -> list[Any]:
        """Return an update for each output of `form` in `_events`."""
        return [
            gr.HTML(value=editor_people(form.people), src=small_picture(form.picture)),
            form.picture,
            *self.voices.filled(form),
            form.prompt,
            form.negative_prompt,
            form.seconds,
            form.fps,
            form.resolution if form.resolution in self._resolutions else "",
            form.steps,
            form.guidance,
            form.audio_guidance,
            form.turbo,
            form.seed,
        ]

    def _found(self, picture: str | None) -> Any:
        """Put a box over each person who is found in a new picture; without any the boxes stay as they are."""
        drawn = str(self._known.get("model", "")).startswith("tiny")
        boxes = found_boxes(picture, drawn=drawn) if picture else []
        return gr.HTML(value=named_boxes(boxes)) if boxes else gr.skip()

    def _named(self, script: str, boxes: Any) -> Any:
        named = with_names(boxes, names_of(script or ""))
        return gr.skip() if named is None else gr.HTML(value=named)

    def _known_again(self) -> list[Any]:
        """Ask what the worker offers, which may have been away when the studio started, or is another one now."""
        self._ask()
        return [heading(self._studio, self._known, self._trouble), self._sizes(), *self.voices.offered(self._known)]

    def _planned(self, *values: Any) -> str:
        form = self._form(*values)
        spoken = form.voices == SCRIPT and form.script.strip()
        if not form.picture or not (spoken or form.media().keys() - {"picture"}):
            return f"<p class=note>{_NO_PLAN}</p>"
        if not form.prompt.strip():
            form = replace(form, prompt=".")
        try:
            plan = self._studio.plan(form)
        except FieldError as error:
            return f"<p class=note>No plan yet: {escape(error.text)}</p>"
        return plan_html(plan, self._studio.rate(str(plan["model"]), str(plan["resolution"])))

    def _start(self, *values: Any) -> list[Any]:
        form = self._form(*values)
        try:
            job = self._studio.make(form)
        except FieldError as error:
            return [gr.skip(), *_told(error.field, error.text)]
        return [{"job": job, "load": ""}, *_told("", "")]

    def _failed(self, videos: Any) -> list[Any]:
        entry = self._studio.history.get(str((videos or {}).get("failed") or ""))
        return _told(entry.field, entry.error) if entry is not None and entry.field else _told("", "")

    def _recipe(self, path: str | None) -> list[Any]:
        count = len(self._inputs())
        if not path:
            return [gr.skip() for _ in range(count + 1)]
        try:
            form, told = form_of(self._read_recipe(Path(path)))
        except EngineError:
            told = ["This video has no settings in it: choose an MP4 that this engine made."]
            return [*(gr.skip() for _ in range(count)), _alert(told[0])]
        items = "".join(f"<li>{escape(one)}</li>" for one in told)
        # What the person has chosen already stays.
        chosen = [self.picture, self.voices.recording, *self.voices.audios]
        outputs = [self.boxes, self.picture, *self._inputs()[2:]]
        filled = [
            gr.skip() if output in chosen else value for output, value in zip(outputs, self._filled(form), strict=True)
        ]
        filled[0] = gr.HTML(value=editor_people(form.people))
        return [*filled, f"<p role=status>Settings loaded.</p><ul>{items}</ul>"]

    def _load(self, videos: Any) -> list[Any]:
        entry = self._studio.history.get(str((videos or {}).get("load") or ""))
        if entry is None:
            return [gr.skip() for _ in range(len(self._inputs()))]
        form = read_form(entry.form, self._studio.history.files(entry))
        return self._filled(form)


def _told(field: str, text: str) -> list[Any]:
    """Return an update for each place of an error, and one that opens what the place is in."""
    where = field if field in _FIELDS else ""
    texts = [_alert(text) if name == where and text else "" for name in _FIELDS]
    return [*texts, gr.Accordion(open=True) if where in _MORE else gr.skip()]


def _alert(text: str) -> str:
    return f'<p class="error" role="alert">{escape(text)}</p>'
