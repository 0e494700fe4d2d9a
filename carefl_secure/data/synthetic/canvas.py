"""The canvas that all parts of a drawn scene share, and where a face lies on it."""

from __future__ import annotations

import math

SIZE = 64
"""Side of the finished image in pixels; it is drawn at twice that and averaged down."""

CANVAS = 2 * SIZE
"""Side of what is drawn on, in its own pixels."""

Point = tuple[float, float]
Colour = tuple[int, int, int]

INK: Colour = (34, 26, 26)

SPOTS: tuple[Point, ...] = ((-0.36, -0.12), (0.36, -0.12), (0, 0.16), (-0.36, 0.5), (0.36, 0.5))
"""The landmarks in units of the face's radius from its middle: eyes, nose tip, mouth corners."""


class Face:
    """Maps face coordinates (unit circle, y down) to the canvas."""

    def __init__(self, x: float, y: float, radius: float, tilt: float) -> None:
        self.x, self.y, self.r = x, y, radius
        self._cos, self._sin = math.cos(tilt) * radius, math.sin(tilt) * radius

    def at(self, u: float, v: float) -> Point:
        """Return where a point of the face lies on the canvas."""
        return (self.x + u * self._cos - v * self._sin, self.y + u * self._sin + v * self._cos)

    def line(self, points: list[Point]) -> list[Point]:
        """Return where several points of the face lie."""
        return [self.at(u, v) for u, v in points]

    def disc(self, u: float, v: float, ru: float, rv: float) -> tuple[float, float, float, float]:
        """Return the box of an upright ellipse around a point of the face."""
        x, y = self.at(u, v)
        return (x - ru * self.r, y - rv * self.r, x + ru * self.r, y + rv * self.r)
