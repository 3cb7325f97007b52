"""The studio's page, laid out with Gradio. What its values mean is in the other modules of this package."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from engine.client import ClientError
from engine.errors import EngineError
from engine.redaction import scrub
from engine.serving.studio.examples import EXAMPLES
from engine.serving.studio.form import FILE, MOST_PEOPLE, SILENT, FieldError, Form, Person, read_form
from engine.serving.studio.people import editor_people, equal_boxes, found_boxes, named_boxes, people_of
from engine.serving.studio.plan_table import plan_html
from engine.serving.studio.recipe import form_of
from engine.serving.studio.studio import Studio

_PEOPLE = range(1, MOST_PEOPLE + 1)
#: Fields with a place for an error beside them.
_FIELDS = (
    "picture", "people", "recording", *(f"voice{number}" for number in _PEOPLE), "prompt", "seconds", "fps",
    "resolution", "steps", "guidance", "audio_guidance", "seed", "",
)  # fmt: skip
_NO_PLAN = "Add a picture and a voice to see length, time and price."
#: Largest side of the picture in the box editor, in pixels.
_EDITOR = 800


def build(studio: Studio, read_recipe: Callable[[Path], Mapping[str, Any]]) -> tuple[gr.Blocks, dict[str, Any]]:
    """Return the page, and how it looks: keyword arguments of Gradio's `mount_gradio_app`."""
    return _Page(studio, read_recipe).blocks, {"theme": _theme(), "css": _read("studio.css"), "head": _HEAD}


#: Gradio names some buttons by other words than those that are seen, which voice control needs.
_HEAD = """<meta name="color-scheme" content="light dark"><script>
const name = () => {
  document.querySelectorAll("button.upload-container[aria-label]").forEach((one) => one.removeAttribute("aria-label"));
  document.querySelectorAll("button.playback[aria-label]").forEach((one) => {
    const text = one.textContent.trim();
    if (text && !one.ariaLabel.startsWith(text)) one.ariaLabel = `${text}: ${one.ariaLabel}`;
  });
};
new MutationObserver(name).observe(document, { childList: true, subtree: true, characterData: true });
</script>"""


class _Page:
    def __init__(self, studio: Studio, read_recipe: Callable[[Path], Mapping[str, Any]]) -> None:
        self._studio, self._read_recipe = studio, read_recipe
        try:
            self._known: Mapping[str, Any] = studio.backend.capabilities()
            self._trouble = ""
        except ClientError as error:
            self._known, self._trouble = {}, scrub(str(error))
        self._resolutions = [str(one) for one in self._known.get("resolutions", ())]
        self._errors: dict[str, gr.HTML] = {}
        with gr.Blocks(title="MultiTalk studio", analytics_enabled=False) as self.blocks:
            self._layout()
            self._events()

    # --- layout -------------------------------------------------------------------------------------------------------

    def _layout(self) -> None:
        gr.HTML(self._heading(), elem_id="heading")
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
                    js_on_load=_read("videos.js"),
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
            js_on_load=_read("boxes.js"),
            elem_id="boxes",
            src="",
        )
        self._error("people")
        self.together = gr.Radio(
            [("A file for each person", False), ("One recording, each person on a channel", True)],
            value=False, label="Voices", elem_id="together",
        )  # fmt: skip
        self.recording = gr.Audio(
            label="Recording of all people", type="filepath", sources=["upload", "microphone"], visible=False,
            elem_id="recording", buttons=[],
        )  # fmt: skip
        self._error("recording")
        self.kinds: list[Any] = []
        self.channels: list[Any] = []
        self.audios: list[Any] = []
        self.groups: list[Any] = []
        channels = [("Left channel", "1"), ("Right channel", "2"), ("Channel 3", "3"), ("Channel 4", "4")]
        speaks = [("Speaks", FILE), ("Silent", SILENT)]
        for number in _PEOPLE:
            who = f"person {number}"
            with gr.Group(visible=number == 1, elem_classes="person") as group:
                kind = gr.Radio(speaks, value=FILE, label=f"Person {number}", elem_id=f"kind{number}")
                channel = gr.Dropdown(channels, value=str(number), label=f"Channel of {who}", visible=False)
                audio = gr.Audio(
                    label=f"Voice of {who}", type="filepath", sources=["upload", "microphone"],
                    elem_id=f"voice{number}", buttons=[],
                )  # fmt: skip
                self._error(f"voice{number}")
            self.kinds.append(kind)
            self.channels.append(channel)
            self.audios.append(audio)
            self.groups.append(group)
        self.order = gr.Radio(
            [("At the same time", "para"), ("One after the other", "add")], value="para",
            label="Voices begin", visible=False, elem_id="order",
        )  # fmt: skip

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
                label="Length in seconds", info="Empty: as long as the voices", value=None, minimum=0, elem_id="seconds"
            )
            self.resolution = gr.Dropdown(
                [(f"{known.get('resolution', '')} (default)", ""), *((one, one) for one in self._resolutions)],
                value="", label="Resolution", elem_id="resolution",
            )  # fmt: skip
        self._error("seconds")
        self._error("resolution")
        self.turbo = gr.Checkbox(label="Turbo: few steps, faster", value=False, elem_id="turbo")
        with gr.Accordion("More settings", open=False, elem_id="more"):
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

    def _heading(self) -> str:
        model, device = str(self._known.get("model", "unknown")), str(self._known.get("device", ""))
        where = "a worker elsewhere" if self._studio.backend.endpoint else f"this machine ({device})"
        if self._trouble:
            text = f"<p class=error role=alert>The worker does not answer: {escape(self._trouble)}</p>"
        else:
            text = f"<p>Model <strong>{escape(model)}</strong> on {escape(where)}. {_purpose(self._known)}</p>"
        return f"<h1>MultiTalk studio</h1>{text}"

    # --- events -------------------------------------------------------------------------------------------------------

    def _events(self) -> None:
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        values = self._inputs()
        people = [self.boxes, self.together]
        shown = [*self.groups, *self.kinds, *self.channels, *self.audios, self.recording, self.order]
        self.picture.change(lambda picture: gr.HTML(src=_small(picture)), [self.picture], [self.boxes], **quiet)
        # Only for a picture that the person gives: loaded settings have their own boxes.
        self.picture.input(self._found, [self.picture], [self.boxes], **quiet)
        gr.on(
            [self.boxes.change, self.together.change, *(kind.change for kind in self.kinds)],
            self._arrange, [*people, *self.kinds], shown, **quiet,
        )  # fmt: skip
        # The plan follows every change; of changes while one is made, only the last is planned.
        gr.on(
            [component.change for component in values], self._planned, values, [self.plan],
            trigger_mode="always_last", concurrency_limit=2, **quiet,
        )  # fmt: skip
        places = [self._errors[name] for name in _FIELDS]
        self.make.click(self._start, values, [self.videos, *places], concurrency_limit=2, **quiet).then(
            None, None, None, js=_FOCUS, **quiet
        )
        form = [self.boxes, *values[:1], *values[2:]]
        for button, example in zip(self.examples, EXAMPLES, strict=True):
            button.click(lambda chosen=example: self._filled(chosen.form()), None, form, **quiet)
        self.recipe.upload(self._recipe, [self.recipe], [*form, self.told], **quiet)
        self.videos.select(self._load, [self.videos], form, **quiet)

    def _inputs(self) -> list[Any]:
        """The components of the form, in the order of `_form`."""
        return [
            self.picture, self.boxes, self.together, self.recording, *self.kinds, *self.channels, *self.audios,
            self.order, self.prompt, self.negative, self.seconds, self.fps, self.resolution, self.steps,
            self.guidance, self.audio_guidance, self.turbo, self.seed,
        ]  # fmt: skip

    def _form(self, *values: Any) -> Form:
        picture, boxes, together, recording, *rest = values
        kinds, channels, audios = (rest[index * MOST_PEOPLE : (index + 1) * MOST_PEOPLE] for index in range(3))
        order, prompt, negative, seconds, fps, resolution, steps, guidance, audio_guidance, turbo, seed = rest[
            3 * MOST_PEOPLE :
        ]
        people = tuple(
            Person(name, box, kind if kind == SILENT or not together else channel, None if together else audio)
            for (name, box), kind, channel, audio in zip(people_of(boxes), kinds, channels, audios, strict=False)
        )
        return Form(
            picture, people, recording, bool(together), order or "para", prompt or "", negative or "", seconds, fps,
            resolution or "", steps, guidance, audio_guidance, bool(turbo), seed,
        )  # fmt: skip

    def _filled(self, form: Form) -> list[Any]:
        """Return an update for each output of `form` in `_events`."""
        people = [*form.people, *(Person() for _ in range(MOST_PEOPLE - len(form.people)))]
        return [
            gr.HTML(value=editor_people(form.people), src=_small(form.picture)),
            form.picture,
            form.together,
            form.recording,
            *(SILENT if one.voice == SILENT else FILE for one in people),
            *(one.voice if one.voice.isdigit() else str(number) for number, one in enumerate(people, 1)),
            *(one.audio for one in people),
            form.order,
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

    def _arrange(self, boxes: Any, together: bool, *kinds: str) -> list[Any]:
        """Show a voice for each person."""
        people = people_of(boxes)
        count = len(people)
        names = [name or f"Person {number}" for number, (name, _) in enumerate(people, 1)]
        names += [f"Person {number}" for number in range(count + 1, MOST_PEOPLE + 1)]
        speaks = [kind == FILE for kind in kinds]
        return [
            *(gr.Group(visible=number <= count) for number in _PEOPLE),
            *(gr.Radio(label=name) for name in names),
            *(gr.Dropdown(label=f"Channel of {n}", visible=together and s) for n, s in zip(names, speaks, strict=True)),
            *(gr.Audio(label=f"Voice of {n}", visible=not together and s) for n, s in zip(names, speaks, strict=True)),
            gr.Audio(visible=together),
            gr.Radio(visible=count > 1 and not together),
        ]

    def _planned(self, *values: Any) -> str:
        form = self._form(*values)
        if not form.picture or not form.media().keys() - {"picture"}:
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
            where = error.field if error.field in _FIELDS else ""
            texts = [_alert(error.text) if name == where else "" for name in _FIELDS]
            return [gr.skip(), *texts]
        return [{"job": job, "load": ""}, *("" for _ in _FIELDS)]

    def _recipe(self, path: str | None) -> list[Any]:
        if not path:
            return [gr.skip() for _ in range(len(self._inputs()) + 1)]
        try:
            form, told = form_of(self._read_recipe(Path(path)))
        except EngineError:
            told = ["This video has no settings in it: choose an MP4 that this engine made."]
            return [*(gr.skip() for _ in range(len(self._inputs()))), _alert(told[0])]
        items = "".join(f"<li>{escape(one)}</li>" for one in told)
        filled = self._filled(form)
        # What the person has chosen already stays.
        keep = {1, 3, *range(4 + 2 * MOST_PEOPLE, 4 + 3 * MOST_PEOPLE)}
        filled = [gr.skip() if index in keep else value for index, value in enumerate(filled)]
        filled[0] = gr.HTML(value=editor_people(form.people))
        return [*filled, f"<p role=status>Settings loaded.</p><ul>{items}</ul>"]

    def _load(self, videos: Any) -> list[Any]:
        entry = self._studio.history.get(str((videos or {}).get("load") or ""))
        if entry is None:
            return [gr.skip() for _ in range(len(self._inputs()))]
        form = read_form(entry.form, self._studio.history.files(entry))
        return self._filled(form)


def _alert(text: str) -> str:
    return f'<p class="error" role="alert">{escape(text)}</p>'


#: Puts the person into the field with the error.
_FOCUS = """() => {
  const error = document.querySelector('.error-place .error');
  if (error) error.scrollIntoView({ block: 'center' });
}"""


def _purpose(known: Mapping[str, Any]) -> str:
    if str(known.get("model", "")).startswith("tiny"):
        return (
            "This small model comes with the engine and runs anywhere. It knows <strong>drawn people only</strong>: "
            "use it to try things out. For photographs start with <code>model=multitalk</code> on a card."
        )
    return "Made for photographs of people, one box for each person who is seen."


def _small(picture: str | None) -> str:
    """Return a picture as a small data: URL, upright; "" for one that cannot be read, of which the job says why."""
    if not picture:
        return ""
    try:
        with Image.open(picture) as image:
            image.draft("RGB", (_EDITOR, _EDITOR))
            small = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
    small.thumbnail((_EDITOR, _EDITOR))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _theme() -> gr.themes.Base:
    # No fonts from other hosts.
    text, code = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=text, font_mono=code)


def _read(name: str) -> str:
    return files("engine.serving.studio").joinpath(name).read_text("utf-8")
