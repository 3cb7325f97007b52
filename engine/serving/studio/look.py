"""How the studio's page looks and what stands at its top; and what its fields tell people who cannot see it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr
from PIL import Image, ImageOps

from engine.serving.studio.studio import Studio


def read(name: str, package: str = "engine.serving.studio") -> str:
    """Return a text file of a package."""
    return files(package).joinpath(name).read_text("utf-8")


#: What the head of the page has.
HEAD = f"<meta name='color-scheme' content='light dark'><script>{read('told.js')}</script>"
#: Largest side of the picture in the box editor, in pixels.
_EDITOR = 800

#: Puts the person into the field with the error, once it is drawn.
FOCUS = "() => setTimeout(() => window.toError(), 150)"


def heading(studio: Studio, known: Mapping[str, Any], trouble: str) -> str:
    """Return the top of the page as HTML: which model runs where, and what it is for."""
    model, device = str(known.get("model", "unknown")), str(known.get("device", ""))
    where = "a worker elsewhere" if studio.backend.endpoint else f"this machine ({device})"
    if trouble:
        text = f"<p class=error role=alert>The worker does not answer: {escape(trouble)}</p>"
    else:
        text = f"<p>Model <strong>{escape(model)}</strong> on {escape(where)}. {_purpose(known)}</p>"
    return f"<h1>MultiTalk studio</h1>{text}"


def _purpose(known: Mapping[str, Any]) -> str:
    if str(known.get("model", "")).startswith("tiny"):
        return (
            "This small model comes with the engine and runs anywhere. It knows <strong>drawn people only</strong>: "
            "use it to try things out. For photographs start with <code>model=multitalk</code> on a card."
        )
    return "Made for photographs of people, one box for each person who is seen."


def small_picture(picture: str | None) -> str:
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


def theme() -> gr.themes.Base:
    """Return the look of the page."""
    # No fonts from other hosts.
    text, code = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=text, font_mono=code)
