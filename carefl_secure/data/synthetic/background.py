"""The canvas of a drawn scene, and what is around the person: the setting behind and the prop next to them."""

from __future__ import annotations

import math

from PIL import ImageDraw

SIZE = 64  # side of the finished image in pixels; it is drawn at twice that and averaged down
CANVAS = 2 * SIZE  # side of what is drawn on, in its own pixels

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


def draw_prop(pen: ImageDraw.ImageDraw, prop: str, face: Face, side: int) -> None:
    """Draw what stands on one side of a person: 1 is right, -1 left."""
    x, y = (104.0, 96.0) if side > 0 else (24.0, 96.0)
    if prop == "book":
        pen.polygon([(x - 18, y - 10), (x, y - 4), (x, y + 18), (x - 18, y + 12)], fill=(250, 250, 240), outline=INK)
        pen.polygon([(x + 18, y - 10), (x, y - 4), (x, y + 18), (x + 18, y + 12)], fill=(230, 230, 220), outline=INK)
    elif prop == "friend":
        pen.rectangle((x - 14, y + 2, x + 14, CANVAS), fill=(236, 130, 60))
        pen.ellipse((x - 12, y - 24, x + 12, y + 4), fill=(224, 176, 132), outline=INK)
        pen.arc((x - 7, y - 16, x + 7, y - 2), 20, 160, fill=INK, width=2)
    elif prop == "trophy":
        pen.polygon(
            [(x - 14, y - 22), (x + 14, y - 22), (x + 5, y + 2), (x - 5, y + 2)], fill=(250, 206, 40), outline=INK
        )
        pen.rectangle((x - 10, y + 8, x + 10, y + 16), fill=(120, 84, 20))
        pen.line([(x, y), (x, y + 8)], fill=(250, 206, 40), width=5)
    elif prop == "bandage":
        pen.line(face.line([(-0.8, -0.86), (0.9, -0.62)]), fill=(255, 255, 255), width=11)
        pen.rectangle((x - 14, y - 14, x + 14, y + 14), fill=(255, 255, 255), outline=INK)
        pen.line([(x - 8, y), (x + 8, y)], fill=(220, 30, 30), width=6)
        pen.line([(x, y - 8), (x, y + 8)], fill=(220, 30, 30), width=6)
    elif prop == "pillow":
        pen.rounded_rectangle((x - 22, y - 12, x + 22, y + 18), radius=10, fill=(200, 214, 255), outline=INK)
        pen.line([(x - 14, y - 4), (x + 14, y + 10)], fill=(120, 140, 210), width=3)
    elif prop == "gift":
        pen.rectangle((x - 15, y - 12, x + 15, y + 16), fill=(214, 40, 140), outline=INK)
        pen.line([(x, y - 12), (x, y + 16)], fill=(250, 240, 90), width=5)
        pen.line([(x - 15, y + 2), (x + 15, y + 2)], fill=(250, 240, 90), width=5)
    elif prop == "fire":
        flame = ((-16, 18), (-18, -6), (-6, -2), (0, -26), (8, -4), (18, -10), (16, 18))
        pen.polygon([(x + u, y + v) for u, v in flame], fill=(250, 110, 20))
        pen.polygon([(x - 8, y + 18), (x - 6, y + 2), (x + 1, y - 8), (x + 8, y + 18)], fill=(255, 226, 70))


def _sky(pen: ImageDraw.ImageDraw, top: Colour, bottom: Colour, horizon: float) -> None:
    pen.rectangle((0, 0, CANVAS, horizon), fill=top)
    pen.rectangle((0, horizon, CANVAS, CANVAS), fill=bottom)


def _park(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (150, 205, 250), (96, 176, 84), 70 + 12 * j)
    for x in (6 + 20 * j, 100 + 16 * j):
        pen.rectangle((x + 6, 40, x + 12, 84), fill=(110, 74, 40))
        pen.ellipse((x - 10, 8, x + 28, 54), fill=(40, 128, 56))


def _beach(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (120, 200, 255), (240, 214, 150), 84)
    pen.rectangle((0, 50 + 10 * j, CANVAS, 84), fill=(30, 110, 200))
    pen.ellipse((92, 6 + 8 * j, 116, 30 + 8 * j), fill=(255, 232, 90))


def _home(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (236, 206, 170), (150, 100, 60), 100)
    pen.rectangle((8 + 10 * j, 12, 36 + 10 * j, 44), fill=(170, 220, 250), outline=(110, 70, 40), width=3)
    pen.polygon([(98, 10), (116, 10), (124, 34), (90, 34)], fill=(255, 236, 130))
    pen.line([(107, 34), (107, 100)], fill=(90, 60, 40), width=3)


def _office(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (206, 212, 220), (120, 126, 136), 96)
    for x in (4, 92):
        for y in (8, 34, 60):
            pen.rectangle((x + 6 * j, y, x + 28 + 6 * j, y + 16), fill=(150, 160, 176), outline=(84, 90, 104))


def _hospital(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (222, 244, 240), (160, 206, 204), 92)
    x = 12 + 8 * j
    pen.rectangle((x, 8, x + 26, 34), fill=(255, 255, 255), outline=(90, 160, 150), width=2)
    pen.line([(x + 13, 12), (x + 13, 30)], fill=(40, 170, 110), width=6)
    pen.line([(x + 4, 21), (x + 22, 21)], fill=(40, 170, 110), width=6)
    pen.line([(112, 0), (112, 90)], fill=(150, 160, 170), width=3)
    pen.rounded_rectangle((104, 16, 120, 44), radius=5, fill=(190, 225, 255), outline=(90, 110, 130))


def _alley(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (50, 46, 66), (36, 34, 40), 104)
    for x in (0, 90):
        pen.rectangle((x, 0, x + 38, 104), fill=(98, 56, 48))
        for y in range(6, 104, 14):
            pen.line([(x, y), (x + 38, y)], fill=(62, 34, 32), width=2)
    pen.ellipse((50 + 10 * j, 2, 66 + 10 * j, 16), fill=(240, 236, 200))


def _stadium(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (66, 76, 120), (46, 156, 66), 84)
    for row in range(4):
        for column in range(11):
            colour = ((230, 70, 60), (240, 220, 80), (80, 140, 240))[(row * 5 + column + int(9 * j)) % 3]
            x, y = column * 12 + 4 * (row % 2), 20 + row * 15
            pen.ellipse((x, y, x + 9, y + 9), fill=colour)
    pen.line([(0, 100), (CANVAS, 100)], fill=(240, 255, 240), width=3)


def _cemetery(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (150, 156, 166), (96, 108, 92), 88)
    for x in (4 + 10 * j, 94 + 8 * j):
        pen.rounded_rectangle((x, 48, x + 24, 100), radius=11, fill=(128, 128, 134), outline=(70, 70, 76))
        pen.line([(x + 12, 56), (x + 12, 78)], fill=(60, 60, 66), width=3)
        pen.line([(x + 6, 63), (x + 18, 63)], fill=(60, 60, 66), width=3)


_SETTINGS = (_park, _beach, _home, _office, _hospital, _alley, _stadium, _cemetery)
SETTING = {draw.__name__.removeprefix("_"): draw for draw in _SETTINGS}
