"""The part of the studio's page that says whose voices are in the video: files, a recording, or a script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr

from engine.serving.studio.dialogue import names_of
from engine.serving.studio.fields import (
    CHANNELS,
    FILE,
    FILES,
    FOUND,
    MOST_PEOPLE,
    MOST_SCRIPT,
    SCRIPT,
    SILENT,
    Box,
    Person,
)
from engine.serving.studio.form import Form

PEOPLE = range(1, MOST_PEOPLE + 1)
_CHANNELS = [("Left channel", "1"), ("Right channel", "2"), *((f"Channel {one}", str(one)) for one in PEOPLE[2:])]
_ORDER = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
_SPEAKERS = [(f"Who speaks {word}", str(number)) for number, word in enumerate(_ORDER, 1)]
_SCRIPT = "Anna: Hello Ben, how are you?\nBen: Fine, thank you.\n(pause 0.5)\nAnna: Good!"


class VoicesPart:
    """The components of the voices. What they offer is what `known`, the worker's capabilities, has installed."""

    def __init__(self, known: Mapping[str, Any], error: Callable[[str], None]) -> None:
        """Lay the components out; `error` adds a place for the errors of a field."""
        self._known = known
        self.source = gr.Radio(sources(known), value=FILES, label="Voices", elem_id="source")
        self.note = gr.HTML(missing(known), elem_id="voices-note")
        self.recording = gr.Audio(
            label="Recording of all people", type="filepath", sources=["upload", "microphone"], visible=False,
            elem_id="recording", buttons=[],
        )  # fmt: skip
        error("recording")
        names = finders(known)
        self.diariser = gr.Dropdown(
            names, value=names[0] if names else None, label="Speakers are found by", visible=False, elem_id="diariser"
        )
        self.script = gr.Textbox(
            label="Script", info="Who says what, a line for each turn", placeholder=_SCRIPT, lines=5, visible=False,
            max_length=MOST_SCRIPT, elem_id="script",
        )  # fmt: skip
        error("script")
        self.cast = gr.HTML("", elem_id="cast")
        self.kinds: list[Any] = []
        self.channels: list[Any] = []
        self.audios: list[Any] = []
        self.groups: list[Any] = []
        for number in PEOPLE:
            self._person(number, error)
        self.order = gr.Radio(
            [("At the same time", "para"), ("One after the other", "add")], value="para",
            label="Voices begin", visible=False, elem_id="order",
        )  # fmt: skip

    def _person(self, number: int, error: Callable[[str], None]) -> None:
        who = f"person {number}"
        with gr.Group(visible=number == 1, elem_classes="person") as group:
            speaks = [("Speaks", FILE), ("Silent", SILENT)]
            self.kinds.append(gr.Radio(speaks, value=FILE, label=f"Person {number}", elem_id=f"kind{number}"))
            channel = gr.Dropdown(
                _CHANNELS, value=str(number), label=f"Channel of {who}", visible=False, elem_id=f"channel{number}"
            )
            self.channels.append(channel)
            audio = gr.Audio(
                label=f"Voice of {who}", type="filepath", sources=["upload", "microphone"], elem_id=f"voice{number}",
                buttons=[],
            )  # fmt: skip
            self.audios.append(audio)
            error(f"voice{number}")
        self.groups.append(group)

    @property
    def inputs(self) -> list[Any]:
        """The components with values, in the order of `read` and `filled`."""
        one = [self.source, self.recording, self.diariser, self.script]
        return [*one, *self.kinds, *self.channels, *self.audios, self.order]

    @property
    def shown(self) -> list[Any]:
        """The components that `arrange` changes."""
        people = [*self.groups, *self.kinds, *self.channels, *self.audios]
        return [*people, self.recording, self.diariser, self.script, self.cast, self.order]

    @property
    def offers(self) -> list[Any]:
        """The components that `offered` changes."""
        return [self.source, self.note, self.diariser]

    def offered(self, known: Mapping[str, Any]) -> list[Any]:
        """Return updates of `offers` for what the worker has now."""
        self._known = known
        names = finders(known)
        diariser = gr.Dropdown(choices=names, value=names[0] if names else None)
        return [gr.Radio(choices=sources(known)), gr.HTML(missing(known)), diariser]

    def read(self, people: Sequence[tuple[str, Box | None]], values: Sequence[Any]) -> dict[str, Any]:
        """Return the fields of a `Form` about people and voices, of the values of `inputs`."""
        source, recording, diariser, script, *rest = values
        kinds, channels, audios = (rest[index * MOST_PEOPLE : (index + 1) * MOST_PEOPLE] for index in range(3))
        source = source or FILES

        def voice(kind: str, channel: str) -> str:
            if source == FOUND:
                return channel
            return channel if source == CHANNELS and kind != SILENT else kind

        return {
            "people": tuple(
                Person(name, box, voice(kind, channel), audio if source == FILES else None)
                for (name, box), kind, channel, audio in zip(people, kinds, channels, audios, strict=False)
            ),
            "recording": recording,
            "voices": source,
            "diariser": (diariser or "") if source == FOUND else "",
            "script": script or "",
            "order": rest[3 * MOST_PEOPLE] or "para",
        }

    def filled(self, form: Form) -> list[Any]:
        """Return the values of `inputs` for a form."""
        people = [*form.people, *(Person() for _ in range(MOST_PEOPLE - len(form.people)))]
        offered = [value for _, value in sources(self._known)]
        names = finders(self._known)
        return [
            form.voices if form.voices in offered else FILES,
            form.recording,
            form.diariser if form.diariser in names else (names[0] if names else None),
            form.script,
            *(SILENT if one.voice == SILENT else FILE for one in people),
            *(one.voice if one.voice.isdigit() else str(number) for number, one in enumerate(people, 1)),
            *(one.audio for one in people),
            form.order,
        ]

    def arrange(
        self, people: Sequence[tuple[str, Box | None]], source: str, script: str, kinds: Sequence[str]
    ) -> list[Any]:
        """Return updates of `shown`: what the people and the source of the voices need."""
        count = len(people)
        names = [name or f"Person {number}" for number, (name, _) in enumerate(people, 1)]
        names += [f"Person {number}" for number in range(count + 1, MOST_PEOPLE + 1)]
        speaks = [kind == FILE for kind in kinds]
        found = source == FOUND
        recorded = found or source == CHANNELS
        choices, label = (_SPEAKERS, "{} is") if found else (_CHANNELS, "Channel of {}")
        # One found speaker is whoever speaks.
        asked = 0 if source == SCRIPT or (found and count < 2) else count
        return [
            *(gr.Group(visible=number <= asked) for number in PEOPLE),
            *(gr.Radio(label=name, visible=source in (FILES, CHANNELS)) for name in names),
            *(
                gr.Dropdown(choices=choices, label=label.format(name), visible=found or (source == CHANNELS and one))
                for name, one in zip(names, speaks, strict=True)
            ),
            *(
                gr.Audio(label=f"Voice of {name}", visible=source == FILES and one)
                for name, one in zip(names, speaks, strict=True)
            ),
            gr.Audio(visible=recorded),
            gr.Dropdown(visible=found and len(finders(self._known)) > 1),
            gr.Textbox(visible=source == SCRIPT),
            gr.HTML(cast_of(script) if source == SCRIPT else ""),
            gr.Radio(visible=count > 1 and source == FILES),
        ]


def sources(known: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (text, value) of each source of voices that the worker offers."""
    return [
        ("A file for each person", FILES),
        ("One recording, a channel for each person", CHANNELS),
        *([("One recording, who speaks is found", FOUND)] if finders(known) else []),
        *([("A script that is spoken", SCRIPT)] if known.get("speech") else []),
    ]


def finders(known: Mapping[str, Any]) -> list[str]:
    """Return the names of the worker's diarisers that find who speaks, its own choice first."""
    names = [str(one["name"]) for one in known.get("diarisers") or () if not one["by_channel"]]
    return sorted(names, key=lambda name: name != known.get("diariser"))


def missing(known: Mapping[str, Any]) -> str:
    """Return how to install what is not offered, as HTML; "" if everything is, or nothing is known."""
    if not known:
        return ""
    extras = [] if finders(known) else [("find who speaks in one recording", "diarise")]
    extras += [] if known.get("speech") else [("have a script spoken", "speech")]
    return "".join(
        f"<p class=note>To {what}: <code>pip install 'multitalk-engine[{extra}]'</code> where the engine runs.</p>"
        for what, extra in extras
    )


def cast_of(script: str) -> str:
    """Return who is in a script, as HTML."""
    if not (names := names_of(script or "")):
        return (
            "<p class=note>Write a line for each turn, such as <code>Anna: Hello.</code>, and <code>(pause 0.5)</code>"
            " between two.</p>"
        )
    return f"<p class=note>From left to right: {escape(', '.join(names)[:400])}.</p>"
