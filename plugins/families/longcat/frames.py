"""The latent frames of a forward: which are given, where the reference is in time, and who sees whom."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import RequestError

#: Position of the reference frame in time, and within how many frames of it noisy frames do not see it.
REFERENCE_POSITION, HIDDEN_RANGE = 10, 3


@dataclass(frozen=True)
class FrameLayout:
    """The latent frames of one sequence, in this order: the reference, other given frames, noisy frames.

    Given frames are clean and have time 0. They see no noisy frame, no text and no voice; the reference and the other
    given frames do not see each other either. Raises RequestError for a combination that the network was not made for.
    """

    #: All latent frames, including the reference and the other given ones.
    total: int
    #: Given frames, including the reference: 0 (text only), 1 (a picture), or more (a continuation).
    given: int = 0
    #: Whether the first given frame is the reference of a continuation.
    reference: bool = False
    #: The reference's position in time; may be negative or beyond the window.
    position: int = REFERENCE_POSITION
    #: Noisy frames at most this far from the reference's position do not see the reference; 0: all see it.
    hidden_range: int = HIDDEN_RANGE

    def __post_init__(self) -> None:
        """Check the combination."""
        if not 0 <= self.given <= self.total or self.total < 1:
            raise RequestError(
                f"{self.given} of {self.total} latent frames are given",
                field="layout.given",
                hint="give at most all of them",
            )
        if self.reference != (self.given > 1):
            raise RequestError(
                f"{self.given} given latent frames {'with' if self.reference else 'without'} a reference",
                field="layout.reference",
                hint="a picture is one given frame; a continuation has a reference and at least one more",
            )
        if self.hidden_range < 0:
            raise RequestError(
                f"a range of {self.hidden_range} frames", field="layout.hidden_range", hint="must be 0 or more"
            )

    @property
    def noisy(self) -> int:
        """Frames that are denoised."""
        return self.total - self.given

    @property
    def times(self) -> tuple[int, ...]:
        """Each frame's position in time."""
        if not self.reference:
            return tuple(range(self.total))
        return (self.position, *range(self.total - 1))

    @property
    def hiding(self) -> tuple[int, int]:
        """The noisy frames begin .. end - 1, counted from the first noisy one, that do not see the reference.

        As in the public code, an interval that is not completely inside the noisy frames hides nothing at all.
        """
        begin, end = self._interval
        inside = self.reference and self.hidden_range > 0 and 0 <= begin < end <= self.noisy
        return (begin, end) if inside else (0, 0)

    @property
    def warning(self) -> str:
        """A sentence if a range was asked for and only part of it lies inside the noisy frames; else ""."""
        begin, end = self._interval
        asked = self.reference and self.hidden_range > 0 and begin < self.noisy and end > 0
        if not asked or self.hiding != (0, 0):
            return ""
        return (
            f"the reference at position {self.position} is hidden from no frame: its range of {self.hidden_range} "
            "frames reaches beyond the new frames of the window"
        )

    @property
    def _interval(self) -> tuple[int, int]:
        # Noisy frame j is at position given - 1 + j.
        begin = self.position - self.hidden_range - self.given + 1
        return begin, begin + 2 * self.hidden_range + 1
