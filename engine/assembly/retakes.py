"""Make a window again if the judge finds a fault, and keep the best attempt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from engine.data import Attempt, Report, Window, WindowReport
from engine.errors import EngineError
from engine.evaluation.judge import Judge, Look
from engine.family import Finished

#: Seeds of retakes are below this number, as a random seed of a request: every JSON parser reads them exactly.
_SEEDS = 2**32


class Retakes:
    """Judges the windows of one request in their order, and makes those again that are outside their limits.

    The first attempt of each window draws its noise from the request's own generator, as without retakes. Each further
    one draws a seed from that generator, and its noise from a new generator with that seed. So the video depends only
    on the request, and the number of noise values that a solver draws in a retake changes no later window.
    """

    def __init__(self, judge: Judge | None, most: int, generator: torch.Generator, again: Callable[[], None]) -> None:
        """Make each window at most `most` times again; `again` is called before each. Without a judge: never."""
        self._judge, self._most, self._generator, self._again = judge, most if judge else 0, generator, again
        self._reports: list[WindowReport] = []

    def make(self, window: Window, attempt: Callable[[torch.Generator], Finished]) -> Finished:
        """Return the best of the attempts at `window`: that with the least badness, of equal ones the first.

        `attempt` makes the window with noise of a generator. Its EngineError with the code "broken_window" counts as
        the worst attempt, and is raised if no other succeeds. Other errors are raised at once.
        """
        best: tuple[Finished, Look] | None = None
        attempts: list[Attempt] = []
        broken: EngineError | None = None
        kept = 0
        for number in range(self._most + 1):
            generator, seed = (self._generator, None) if number == 0 else self._reseeded()
            try:
                made = attempt(generator)
            except EngineError as error:
                if error.code != "broken_window" or not self._most:
                    raise
                broken = broken or error
                attempts.append(Attempt(seed, None, (error.what,)))
                continue
            if self._judge is None:
                return made
            look = self._judge.look(made.frames.pictures, window)
            attempts.append(Attempt(seed, look.report.badness, look.report.below))
            if best is None or look.report.badness < best[1].report.badness:
                best, kept = (made, look), number
            if not look.report.badness:
                break
        if best is None:
            assert broken is not None
            raise broken
        attempts[kept] = replace(attempts[kept], kept=True)
        made, look = best
        assert self._judge is not None
        self._judge.keep(look)
        self._reports.append(replace(look.report, attempts=tuple(attempts) if len(attempts) > 1 else ()))
        return made

    def state(self) -> tuple[dict[str, Any], tuple[WindowReport, ...]]:
        """Return what another process needs to go on with the next window: `Judge.state`, and the reports so far."""
        return {} if self._judge is None else self._judge.state(), tuple(self._reports)

    def restore(self, state: Mapping[str, Any], reports: Sequence[WindowReport]) -> None:
        """Go on after the windows of `reports`, from the `state` of another process."""
        if self._judge is not None:
            self._judge.restore(state)
        self._reports = list(reports)

    def report(self) -> Report | None:
        """Return the report on all windows so far; None without a judge."""
        return None if self._judge is None else self._judge.report(self._reports)

    def _reseeded(self) -> tuple[torch.Generator, int]:
        self._again()
        seed = int(torch.randint(_SEEDS, (), generator=self._generator))
        return torch.Generator().manual_seed(seed), seed
