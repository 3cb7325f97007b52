"""Under which licences the models' weights are published, and whether a paid service may run them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.errors import ConfigError
from engine.hub.manifest import Manifest

#: The words for whether a paid service may run weights. "unknown": no source says so.
COMMERCIAL = ("yes", "no", "unknown")


@dataclass(frozen=True)
class Licence:
    """The licence of one publication of weights."""

    weights: str
    #: Repository on the hub; "": in this package.
    repository: str
    #: Models (`model=...`) whose presets have it; empty: it is added by hand.
    models: tuple[str, ...]
    #: "unknown" if no source was found.
    licence: str
    #: One of COMMERCIAL.
    commercial: str
    #: Where the licence was read.
    source: str


def licences(manifest: Manifest) -> tuple[Licence, ...]:
    """Return the licence of everything that the manifest can download, and of the weights in this package.

    Raises ConfigError for another word than "yes", "no" and "unknown".
    """
    presets = manifest.presets()
    rows = []
    for repository, row in manifest.repositories().items():
        models = (one.words["model"] for one in presets if any(file.repository == repository for file in one.files))
        rows.append(_licence(repository, row, tuple(dict.fromkeys(models))))
    rows += [_licence("", row, tuple(row["models"])) for row in manifest.packaged().values()]
    return tuple(sorted(rows, key=lambda one: not one.models))


def licences_of(manifest: Manifest, model: str) -> tuple[Licence, ...]:
    """Return the licences of the weights of `model=MODEL`; empty for a model that the manifest does not have."""
    return tuple(one for one in licences(manifest) if model in one.models)


def may_be_hosted(rows: Iterable[Licence]) -> str:
    """Return whether a paid service may run all of these weights: "yes", "no" or "unknown"."""
    words = {one.commercial for one in rows}
    return "no" if "no" in words else "yes" if words == {"yes"} else "unknown"


def table(rows: Sequence[Licence]) -> list[tuple[str, str, str, str, str]]:
    """Return the rows of the table, with its head: weights, models, commercial service, licence, source."""
    head = ("weights", "used by `model=`", "in a paid service", "licence", "where that was read")
    return [
        head,
        *(
            (one.weights, ", ".join(one.models) or "none (`--with`)", one.commercial, one.licence, one.source)
            for one in rows
        ),
    ]


def _licence(repository: str, row: dict[str, object], models: tuple[str, ...]) -> Licence:
    # A manifest of one's own need not say more than a licence.
    commercial = str(row.get("commercial", "unknown"))
    if commercial not in COMMERCIAL:
        raise ConfigError(
            f"commercial is {commercial!r} for {repository or 'packaged weights'}",
            field="--manifest",
            hint=f"write one of {', '.join(map(repr, COMMERCIAL))}, in quotes",
        )
    weights, source = str(row.get("weights", repository)), str(row.get("source", ""))
    return Licence(weights, repository, models, str(row["licence"]), commercial, source)
