"""`multitalk rehearse`: runs the real code path at the published sizes on a simulated card."""

from __future__ import annotations

import json
from collections.abc import Sequence

from engine.cli.parser import Parser
from engine.cli.settings import settings_for
from engine.errors import ConfigError
from engine.planning.gpus import Card, cards, find_card
from engine.text.terminal import columns


def rehearse(arguments: Sequence[str]) -> int:
    """Rehearse the config in `arguments`; return 1 if something would not work. Raises ConfigError."""
    parser = Parser(
        prog="multitalk rehearse",
        usage="multitalk rehearse [overrides] [--card NAME] [--json]",
        description="Run the real code path at the published sizes on a simulated card: needs no GPU and no weights.",
    )
    parser.flag("--card", help="name of a card as `multitalk plan` shows it; default: the recipe's card")
    parser.flag("--speakers", type=int, default=2, help="number of speakers, 1 to 3 (2)")
    parser.flag("--windows", type=int, default=2, help="number of windows (2)")
    parser.flag("--steps", type=int, default=2, help="steps of each window (2); 0: the config's own number")
    parser.flag("--blocks", type=int, help="run this many blocks of the network and extrapolate the rest")
    parser.flag("--json", action="store_true", help="print one JSON object")
    values, overrides = parser.read(arguments)
    settings = settings_for("generate", overrides)
    settings.show(overrides)
    overrides = [*settings.overrides, *overrides]

    from engine.rehearsal.rehearse import default_card, rehearse, table
    from engine.rehearsal.walk import Scene

    for flag, value, least in (("--windows", values.windows, 1), ("--steps", values.steps, 0)):
        if value is not None and value < least:
            raise ConfigError(f"{value} is too few", field=flag, hint=f"give {least} or more")
    card = _card(values.card) if values.card else default_card(overrides)
    report = rehearse(overrides, card, Scene(values.speakers, values.windows, values.steps or None, values.blocks))
    print(json.dumps(report.as_json()) if values.json else "\n".join(table(report, columns())))
    return 1 if report.faults else 0


def _card(name: str) -> Card:
    card = find_card(name) or next((card for card in cards() if card.name.lower().startswith(name.lower())), None)
    if card is None:
        raise ConfigError(f"no card named {name!r}", field="--card", hint=", ".join(card.name for card in cards()))
    return card
