"""Request and config -> media and plan: used for a plan, a preview and a generation."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from engine.assembly.access import request_access
from engine.assembly.find_regions import find_regions
from engine.assembly.location import WeightsFinder
from engine.assembly.settings import make_plan_inputs
from engine.cancel import apart
from engine.components import CancelToken
from engine.config import Config
from engine.data import Access, Media, Plan, Request
from engine.errors import RequestError
from engine.plugin.manager import Registry
from engine.stages.addresses import bring_file
from engine.stages.dub import watch
from engine.stages.plan import plan_walk
from engine.stages.read import fetch, hear, length
from engine.stages.soundtrack import FIELD, with_soundtrack


def plan_request(
    request: Request,
    config: Config,
    registry: Registry,
    access: Access,
    weights: WeightsFinder,
    folder: Path,
    *,
    cancel: CancelToken | None = None,
) -> tuple[Request, Media, Plan]:
    """Fetch the request's addresses to files in `folder`, or use local files in place, and make the plan.

    The returned request has the boxes of found people (config.regions).

    `access` is the engine's own; the request's keys are added to it. Missing weights are noted in the plan. Raises
    RequestError, ConfigError, and Cancelled within a second once `cancel` is set.
    """
    media = fetch_media(request, registry, access, folder, cancel=cancel)
    request, media = find_regions(request, media, config, registry, cancel=cancel)
    if config.windows == "pauses":
        media = hear(request, media, config.model.fps, cancel=cancel)
    if media.source is not None:
        dub = config.dub
        if request.soundtrack and dub.sound == "under":
            hint = "remove one of them: the soundtrack is all that is heard"
            raise RequestError("dub.sound=under, and there is a soundtrack", field=FIELD, hint=hint, code="conflict")
        # One second more, because the plan decides the length to a frame.
        seconds, sound = length(request, media, config.model.fps) + 1, dub.sound
        media = watch(media, cuts=dub.cuts, cut_score=dub.cut_score, sound=sound, seconds=seconds, cancel=cancel)
    plan = apart(lambda: plan_media(request, media, config, registry, weights, cancel=cancel), cancel, "plan")
    return request, media, plan


def fetch_media(
    request: Request, registry: Registry, access: Access, folder: Path, *, cancel: CancelToken | None = None
) -> Media:
    """Fetch the request's addresses to files, and read their headers. Raises RequestError and Cancelled."""
    opener, within = registry.plugins.hook.open_address, request_access(access, request)
    media = fetch(request, opener, within, folder, cancel=cancel)
    if not request.soundtrack:
        return media
    bring = partial(bring_file, request.soundtrack, FIELD, opener, replace(within, cancel=cancel), folder)
    path = apart(bring, cancel, "read", grace=0.5)
    return with_soundtrack(media, path, most=access.max_seconds, cancel=cancel)


def plan_media(
    request: Request,
    media: Media,
    config: Config,
    registry: Registry,
    weights: WeightsFinder,
    *,
    cancel: CancelToken | None = None,
) -> Plan:
    """Make the plan for fetched media with any config. Raises RequestError, ConfigError and Cancelled."""
    return plan_walk(request, media, make_plan_inputs(config, registry, weights), cancel=cancel)
