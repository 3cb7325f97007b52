"""Config -> the licences of its model's weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from engine.config import Config
from engine.hub.licences import licences_of, may_be_hosted
from engine.hub.manifest import read_manifest


def licences_for(config: Config) -> dict[str, Any]:
    """Return `commercial`, whether a paid service may run the config's model, and `licences`, those of its weights.

    "unknown" if a licence is unknown, and for a model that this package does not know.
    """
    rows = licences_of(read_manifest(), config.model.name)
    return {"commercial": may_be_hosted(rows), "licences": [asdict(one) for one in rows]}
