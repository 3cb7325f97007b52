"""The forwards of each step: guidance in some of the steps only, and a count of those that were made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.components import Guidance

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class GuidanceInterval:
    """A guidance that works only in the steps of an interval; `outside` is the one of the other steps.

    Outside, one forward with prompt and voices is enough.
    High noise levels decide composition and motion, low ones detail, and guidance changes little at low ones
    (arXiv 2404.07724). It satisfies the protocol Guidance itself, with the branches of the steps inside.
    """

    inside: Guidance
    outside: Guidance
    #: The steps with guidance, as shares of all steps: `start` <= index / steps < `until`.
    start: float
    until: float

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches inside, and others that only steps outside need."""
        return tuple(dict.fromkeys((*self.inside.branches, *self.outside.branches)))

    def reset(self) -> None:
        """Forget earlier evaluations."""
        self.inside.reset()
        self.outside.reset()

    def combine(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Combine the predictions of an evaluation inside of the interval."""
        return self.inside.combine(predictions)

    def of_step(self, index: int, steps: int) -> Guidance:
        """Return the guidance of the step `index`, from 0."""
        # The tolerance makes 0.3 the share of step 3 of 10 in spite of rounding.
        return self.inside if self.start - 1e-9 <= index / steps < self.until - 1e-9 else self.outside


def guidance_of(guidance: Guidance, index: int, steps: int) -> Guidance:
    """Return the guidance of one of `steps` steps, from 0."""
    return guidance.of_step(index, steps) if isinstance(guidance, GuidanceInterval) else guidance
