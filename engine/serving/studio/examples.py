"""Examples to click: the drawn pictures and voices of the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from engine.serving.studio.fields import Person
from engine.serving.studio.form import Form


@dataclass(frozen=True)
class Example:
    """A filled-in form."""

    title: str
    picture: str
    voices: tuple[str, ...]
    prompt: str

    def form(self) -> Form:
        """Return the form, with the paths of the installed files."""
        folder = Path(str(files("engine") / "examples"))
        people = tuple(
            Person(f"Person {number}", audio=str(folder / voice)) for number, voice in enumerate(self.voices, 1)
        )
        return Form(str(folder / self.picture), people, prompt=self.prompt, turbo=True, order="add", seed=7.0)


EXAMPLES = (
    Example("one person", "one.png", ("one.flac",), "A woman speaks."),
    Example("two people", "two.png", ("left.flac", "right.flac"), "Two people talk."),
)
