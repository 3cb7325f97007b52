"""Dubbing of drawn source videos: lips, what is kept, whether heads follow, whether cuts stay cuts; as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from engine.assembly.location import locate_weights
from engine.data import Plan, Region, Request, SourceVideo, Speaker
from engine.errors import EngineError, RequestError
from engine.evaluation.frames import read_video
from engine.evaluation.metrics import Pictures, mean, psnr_of
from engine.evaluation.mouths import correlation, face_places, mouth_openings
from engine.media.canvas import make_canvas
from engine.media.source import SourceReader
from engine.plugin.manager import installed
from scripts.evaluate_tiny.cases import FPS, Case, write_film
from scripts.evaluate_tiny.studio import FRAMES, Studio, opened
from scripts.evaluate_tiny.talk import SIZES, machine, read_sizes
from scripts.page_tables import replaced

#: The page, the report from which `python -m scripts.evaluate_tiny dub-table` makes its table, and the contact sheet.
PAGE, MEASURED, SHEET = Path("docs/dubbing.md"), Path("docs/measured/dubbing.json"), Path("docs/images/dubbing.png")
#: Pixels round the lower half of a face that belong to its region.
_ROOM = 10
#: Frame of the second video with which the first one is followed.
_CUT = 40
#: Columns of the contact sheet.
_SHOWN = 8
_WAYS = {
    "picture": "a picture",
    "sparse": "`sparse`",
    "keep head": "`keep`, region round the head",
    "keep lower face": "`keep`, region round mouth and jaw",
}
_ROWS = {
    "sync": ("lip sync with the new voice", 3),
    "sync with the old voice": ("lip sync with the source's voice", 3),
    "head follows": ("correlation of the head's movement with the source's", 2),
    "psnr outside": ("PSNR outside the region, dB", 1),
}


def run(
    *,
    clips: int = 6,
    seed: int = 8_000_000,
    override: tuple[str, ...] = (),
    sheet: str = "",
) -> dict[str, Any]:
    """Dub drawn videos of one person each with the voice of another clip, and measure the MP4 files.

    `clips` videos of one window, drawn as by `evaluate_tiny talk` from `seed` on; `override` goes to the engine. With
    `sheet`, a PNG with frames of the first video is written there. Needs a checkout and eSpeak NG. Raises EngineError.
    """
    if clips < 2:
        raise RequestError(f"{clips} clips", field="evaluate_tiny dub", hint="2 or more: each gets another one's voice")
    overrides = ("model=tiny", "device=cpu", *override)
    with opened(
        overrides, clips=clips, long=1, seed=seed, sizes=read_sizes(SIZES)[:1], name="evaluate_tiny dub"
    ) as studio:
        cases = studio.cases("one", clips, people=1)
        rows: list[dict[str, dict[str, float | None]]] = []
        shown: dict[str, Pictures] = {}
        for number, case in enumerate(studio.each("dub", cases, line=1)):
            figures, videos = _dub(studio, case, cases[(number + 1) % clips])
            rows.append(figures)
            shown = shown or videos
        cuts = [_cut(studio, one, other) for one, other in zip(cases, [*cases[1:], cases[0]], strict=True)]
        if sheet:
            _draw(shown).quantize(256).save(sheet, optimize=True)
        return {
            "bench": "dub",
            "settings": {
                "seed": seed,
                "clips": clips,
                "overrides": list(overrides),
                "follow": studio.service.config.dub.follow,
                "feather": studio.service.config.dub.feather,
                **machine(locate_weights(studio.service.config, installed())),
            },
            "ways": {way: {key: mean(row[way].get(key) for row in rows) for key in _ROWS} for way in _WAYS},
            "cuts": {mode: {key: mean(row[mode][key] for row in cuts) for key in cuts[0][mode]} for mode in cuts[0]},
            "clips": [{"seed": case.seed, **row, "cut": cut} for case, row, cut in zip(cases, rows, cuts, strict=True)],
        }


def _dub(studio: Studio, case: Case, other: Case) -> tuple[dict[str, dict[str, float | None]], dict[str, Pictures]]:
    source = _source_frames(case.rendered, case.frames, case.size)
    mouth, driving = case.mouths[0, 0], other.driving(case.frames)[0]
    head, low = _edges(case.faces[0]), _lower_face(case)
    voice = str(other.voices[0])
    base = Request(case.prompt, "", (Speaker(voice),), seed=case.seed, frames=case.frames)
    ways: dict[str, tuple[Request, npt.NDArray[np.float64] | None]] = {
        "picture": (replace(base, image=str(case.image)), None),
        "sparse": (replace(base, video=str(case.rendered)), None),
    }
    for name, box in (("keep head", head), ("keep lower face", low)):
        speaker = Speaker(voice, Region(box=(float(box[0]), float(box[1]), float(box[2]), float(box[3]))))
        kept = replace(base, video=str(case.rendered), speakers=(speaker,), overrides=("dub.mode=keep",))
        ways[name] = (kept, box)
    moved = face_places(source, mouth)
    found: dict[str, dict[str, float | None]] = {}
    videos = {"source": source}
    for name, (request, region) in ways.items():
        pictures, _ = _video(studio, request)
        openings = mouth_openings(pictures, mouth[None])[0]
        found[name] = {
            "sync": correlation(openings[1:], driving[1:]),
            "sync with the old voice": correlation(openings[1:], case.driving(case.frames)[0][1:]),
            "head follows": _together(face_places(pictures, mouth), moved),
            "psnr outside": None if region is None else _psnr(pictures, source, region),
        }
        videos[name] = pictures
    return found, videos


def _cut(studio: Studio, one: Case, other: Case) -> dict[str, dict[str, float]]:
    """Return where a video of two scenes changes most, relative to its cut, and how large that is in the source."""
    both = np.concatenate([_source_frames(one.rendered, _CUT, one.size), studio.drawn(other)[: FRAMES - _CUT]])
    path = studio.folder / f"{one.seed}-cut.mp4"
    write_film(path, both, FPS)
    source = _source_frames(path, FRAMES, one.size)
    found = {}
    edges = [float(edge) for edge in _edges(one.faces[0])]
    speaker = Speaker(str(one.voices[0]), Region(box=(edges[0], edges[1], edges[2], edges[3])))
    request = Request(one.prompt, "", (speaker,), seed=one.seed, frames=FRAMES, video=str(path))
    for mode in ("sparse", "keep"):
        pictures, plan = _video(studio, replace(request, overrides=(f"dub.mode={mode}",)))
        changes, wanted = (np.abs(np.diff(frames.astype(int), axis=0)).mean((1, 2, 3)) for frames in (pictures, source))
        assert plan.dub is not None
        found[mode] = {
            "cuts found": float(len(plan.dub.scenes)),
            "frames beside the cut": float(abs(int(changes.argmax()) - (_CUT - 1))),
            "change at the cut": float(changes[_CUT - 1] / wanted[_CUT - 1]),
            "largest other change": float(np.delete(changes, _CUT - 1).max() / changes[_CUT - 1]),
        }
    return found


def _source_frames(path: Path, count: int, size: tuple[int, int]) -> Pictures:
    reader = SourceReader(SourceVideo(path, size, FPS, count / FPS), make_canvas(size, size), FPS)
    frames: Pictures = reader.frames(0, count)
    reader.close()
    return frames


def _lower_face(case: Case) -> npt.NDArray[np.float64]:
    """Return a box round the mouth and the jaw in all frames."""
    boxes = case.mouths[0]
    room = np.array([-_ROOM, 0, _ROOM, _ROOM])
    return _edges(np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)]) + room)


def _edges(box: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.maximum(0, np.rint(np.asarray(box, np.float64)))


def _psnr(pictures: Pictures, source: Pictures, box: npt.NDArray[np.float64]) -> float:
    outside = np.ones(source.shape[1:3], bool)
    x0, y0, x1, y1 = (int(edge) for edge in box)
    outside[y0:y1, x0:x1] = False
    return psnr_of(float(((pictures[:, outside].astype(np.float64) - source[:, outside]) ** 2).mean()))


def _together(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Return the correlation of two movements (F, 2), of both axes together."""
    return correlation((one - one.mean(0)).ravel(), (other - other.mean(0)).ravel())


def _video(studio: Studio, request: Request) -> tuple[Pictures, Plan]:
    delivery = studio.service.generate(request)
    if delivery.address is None:
        raise EngineError("the sink keeps no file", field="sink", hint="leave it at sink=disk")
    path = Path(delivery.address)
    pictures = read_video(path)
    path.unlink()
    return pictures, delivery.plan


def _draw(videos: Mapping[str, Pictures]) -> Image.Image:
    """Return a row for each video, with some frames of it."""
    rows = []
    for pictures in videos.values():
        chosen = np.linspace(0, len(pictures) - 1, _SHOWN).round().astype(int)
        rows.append(np.concatenate([np.pad(pictures[number], ((0, 2), (0, 2), (0, 0))) for number in chosen], 1))
    return Image.fromarray(np.concatenate(rows))


def table(report: Mapping[str, Any]) -> str:
    """Return both tables of the page."""
    ways = report["ways"]
    lines = [f"| mean of the videos | {' | '.join(_WAYS.values())} |", f"|---|{'---|' * len(_WAYS)}"]
    for key, (name, digits) in _ROWS.items():
        cells = [ways[way][key] for way in _WAYS]
        lines.append(f"| {name} | {' | '.join('' if cell is None else f'{cell:.{digits}f}' for cell in cells)} |")
    lines += ["", "| a video of two scenes | `sparse` | `keep` |", "|---|---|---|"]
    for key in report["cuts"]["sparse"]:
        lines.append(f"| {key} | {report['cuts']['sparse'][key]:.2f} | {report['cuts']['keep'][key]:.2f} |")
    return "\n".join(lines)


def write_table(root: Path = Path()) -> None:
    """Write the tables of the measured report into the page."""
    page = root / PAGE
    text = table(json.loads((root / MEASURED).read_text("utf-8")))
    page.write_text(replaced(page.read_text("utf-8"), {"dubbing": text}), "utf-8")
