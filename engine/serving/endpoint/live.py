"""Videos that workers publish while they make them: GET /live/JOB/ATTEMPT/NAME."""

from __future__ import annotations

import re

from aiohttp import web

from engine.data.live import PLAYLIST_TYPE
from engine.serving.endpoint.web import APP_STATE, ApiError, find_job

#: The path below which published videos are.
ROOT = "/live"
#: Ending of a file -> its type, and whether its content never changes.
_KINDS = {
    "m3u8": (PLAYLIST_TYPE, False),
    "mp4": ("video/mp4", True),
    "m4s": ("video/iso.segment", True),
}
#: Names that `engine.assembly.live` and `engine.stages.publish` make.
_ATTEMPT, _NAME = re.compile(r"[A-Za-z0-9_-]{16}"), re.compile(r"[a-z0-9-]{1,32}\.(m3u8|mp4|m4s)")


def routes() -> list[web.RouteDef]:
    """Return the route of the playlist and the parts of each job."""
    return [web.get(f"{ROOT}/{{job}}/{{attempt}}/{{name}}", _file)]


async def _file(request: web.Request) -> web.FileResponse:
    """Answer a playlist or a part.

    It needs no API key, which players cannot send: the random name of the attempt is known only to those who may read
    the job's status.
    """
    state = request.app[APP_STATE]
    job = find_job(state, request)
    attempt, name = request.match_info["attempt"], request.match_info["name"]
    if not _ATTEMPT.fullmatch(attempt) or not (kind := _NAME.fullmatch(name)):
        raise ApiError(404, "there is no such file")
    folder = state.pool.live
    if folder is None or not (path := folder / job.id / attempt / name).is_file():
        raise ApiError(404, "there is no such file")
    media_type, final = _KINDS[kind[1]]
    cache = "private, max-age=31536000, immutable" if final else "no-cache"
    return web.FileResponse(path, headers={"Content-Type": media_type, "Cache-Control": cache})
