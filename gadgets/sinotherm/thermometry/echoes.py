"""The echoes of a frame: collected until they can be measured together."""

from collections import deque
from typing import Final

from sinotherm.core.scan import FrameImage

__all__ = ["EchoCollector"]

_SURE: Final = 3
"""Frames in a row that lack the same echoes, after which those are not waited for."""


class EchoCollector:
    """Collects the echoes of one frame after the other.

    A frame is over when all echoes are there, or when the next one begins. Echoes that are announced and
    never come would hold up every map by a frame: after a few frames without they are not waited for.

    Parameters
    ----------
    announced
        Echoes of a frame, by header or settings.
    """

    def __init__(self, announced: int) -> None:
        self._announced = announced
        self._waiting: list[FrameImage] = []
        self._lately: deque[frozenset[int]] = deque(maxlen=_SURE)
        self._known: set[int] = set()
        self._last: tuple[int, frozenset[int]] = -1, frozenset()

    def is_over(self, image: FrameImage) -> bool:
        """Whether an image shows that the frame that waits gets no more echoes."""
        waiting = self._waiting
        return bool(waiting) and (image.number > waiting[0].number or image.echo in [one.echo for one in waiting])

    def add(self, image: FrameImage) -> bool:
        """Take an image; False if it comes too late: its frame was measured without it."""
        number, echoes = self._last
        overtaken = bool(self._waiting) and image.number < self._waiting[0].number
        if overtaken or (image.number == number and image.echo not in echoes):
            self._lately.clear()
            return False
        self._waiting.append(image)
        return True

    @property
    def waits(self) -> bool:
        """Whether an image waits."""
        return bool(self._waiting)

    @property
    def complete(self) -> bool:
        """Whether the frame that waits can be measured."""
        echoes = {image.echo for image in self._waiting}
        usual = self._lately[0] if len(self._lately) == _SURE and len(set(self._lately)) == 1 else None
        return len(echoes) >= self._announced if usual is None else echoes >= usual

    def take(self) -> tuple[list[FrameImage], list[int]]:
        """Return the frame that waits, its images by echo, and the echoes that others had and it lacks."""
        images, self._waiting = sorted(self._waiting, key=lambda image: image.echo), []
        echoes = frozenset(image.echo for image in images)
        self._lately.append(echoes)
        self._last = images[0].number, echoes
        missing = sorted(self._known - echoes)
        self._known |= echoes
        return images, missing
