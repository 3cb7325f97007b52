"""The addresses of jobs and videos that the studio's page uses, besides those of Gradio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from starlette.responses import FileResponse, JSONResponse, Response

from engine.client import ClientError
from engine.serving.studio.fields import FieldError
from engine.serving.studio.studio import Studio

if TYPE_CHECKING:
    from fastapi import FastAPI

_TYPES = {"m3u8": "application/vnd.apple.mpegurl", "mp4": "video/mp4", "m4s": "video/iso.segment"}
#: Fields of an entry in the list of all.
_LISTED = ("id", "state", "word", "final", "title", "created", "thumb", "of", "window")


def add_routes(app: FastAPI, studio: Studio) -> None:
    """Add the addresses below /studio to `app`."""
    routes = _Routes(studio)
    for path, handler, method in (
        ("/studio/jobs", routes.jobs, "GET"),
        ("/studio/jobs/{name}", routes.job, "GET"),
        ("/studio/jobs/{name}/cancel", routes.cancel, "POST"),
        ("/studio/jobs/{name}/remove", routes.remove, "POST"),
        ("/studio/jobs/{name}/retake", routes.retake, "POST"),
        ("/studio/video/{name}", routes.video, "GET"),
        ("/studio/thumb/{name}", routes.thumb, "GET"),
        ("/studio/live/{name}/{file}", routes.live, "GET"),
    ):
        app.add_api_route(path, handler, methods=[method], response_model=None)


class _Routes:
    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def jobs(self) -> Response:
        entries = [self._studio.view(entry.id) for entry in self._studio.history.newest()]
        listed = [{key: entry[key] for key in _LISTED} for entry in entries if entry is not None]
        return JSONResponse(listed, headers={"Cache-Control": "no-store"})

    def job(self, name: str) -> Response:
        entry = self._studio.view(name)
        return _missing() if entry is None else JSONResponse(entry, headers={"Cache-Control": "no-store"})

    def cancel(self, name: str) -> Response:
        try:
            self._studio.cancel(name)
        except ClientError as error:
            return JSONResponse({"error": error.what}, 502)
        return JSONResponse({})

    def remove(self, name: str) -> Response:
        self._studio.remove(name)
        return JSONResponse({})

    def retake(self, name: str, window: int, seed: int | None = None) -> Response:
        try:
            return JSONResponse({"id": self._studio.retake(name, window, seed)})
        except FieldError as error:
            return JSONResponse({"error": error.text}, 400)

    def video(self, name: str, save: int = 0) -> Response:
        if (path := self._stored(name, "video.mp4")) is None:
            return _missing()
        return FileResponse(path, media_type="video/mp4", filename=f"talk-{name[:6]}.mp4" if save else None)

    def thumb(self, name: str) -> Response:
        path = self._stored(name, "thumb.jpg")
        return _missing() if path is None else FileResponse(path, media_type="image/jpeg")

    def live(self, name: str, file: str) -> Response:
        found = self._studio.live_file(name, file)
        if found is None:
            return _missing()
        kind = _TYPES[file.rpartition(".")[2]]
        headers = {"Cache-Control": "no-cache" if file.endswith("m3u8") else "private, max-age=3600"}
        if isinstance(found, Path):
            return FileResponse(found, media_type=kind, headers=headers)
        return Response(found, media_type=kind, headers=headers)

    def _stored(self, name: str, file: str) -> Path | None:
        try:
            path = self._studio.history.path(name, file)
        except KeyError:
            return None
        return path if path.is_file() else None


def _missing() -> Response:
    return JSONResponse({"error": "there is no such video"}, 404)
