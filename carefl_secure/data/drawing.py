"""Draws one scene: a person with a face built from action units, in a setting, with a prop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from carefl_secure.data.scene import GROUPS

__all__ = ["SIZE", "Drawing", "Look", "draw"]

SIZE = 64
"""Side of the finished picture in pixels; it is drawn at twice that and averaged down."""

_S = 2 * SIZE
_SKIN = ((255, 224, 196), (241, 194, 150), (206, 150, 106), (168, 112, 74), (126, 84, 58))
_HAIR = ((40, 28, 20), (96, 62, 30), (168, 120, 54), (60, 60, 66))
_CLOTH = ((176, 52, 52), (52, 92, 176), (60, 140, 84), (150, 96, 170), (206, 160, 60))
_INK = (34, 26, 26)

Point = tuple[float, float]
Colour = tuple[int, int, int]

SPOTS: tuple[Point, ...] = ((-0.36, -0.12), (0.36, -0.12), (0, 0.16), (-0.36, 0.5), (0.36, 0.5))
"""The landmarks in units of the face's radius from its middle: eyes, nose tip, mouth corners."""


@dataclass(frozen=True)
class Look:
    """How a person looks apart from what they feel; one look per subject.

    Parameters
    ----------
    skin : int
        0 (light) to 4 (dark).
    hair : int
        Colour id.
    age : int
        0 child, 1 adult, 2 elder.
    feminine : bool
        Gender presentation: long hair.
    """

    skin: int
    hair: int
    age: int
    feminine: bool


@dataclass(frozen=True)
class Drawing:
    """A finished picture and where things are in it, in its own pixels.

    Parameters
    ----------
    pixels : ndarray of uint8, shape [64, 64, 3]
    box : tuple of float
        The person, ``(left, top, right, bottom)``.
    landmarks : ndarray of float32, shape [5, 2]
        Two eye centres, nose tip, two mouth corners.
    """

    pixels: npt.NDArray[np.uint8]
    box: tuple[float, float, float, float]
    landmarks: npt.NDArray[np.float32]


class _Face:
    """Maps face coordinates (unit circle, y down) to the canvas."""

    def __init__(self, x: float, y: float, radius: float, tilt: float) -> None:
        self.x, self.y, self.r = x, y, radius
        self._cos, self._sin = math.cos(tilt) * radius, math.sin(tilt) * radius

    def at(self, u: float, v: float) -> Point:
        return (self.x + u * self._cos - v * self._sin, self.y + u * self._sin + v * self._cos)

    def line(self, points: list[Point]) -> list[Point]:
        return [self.at(u, v) for u, v in points]

    def disc(self, u: float, v: float, ru: float, rv: float) -> tuple[float, float, float, float]:
        x, y = self.at(u, v)
        return (x - ru * self.r, y - rv * self.r, x + ru * self.r, y + rv * self.r)


def draw(factors: npt.NDArray[np.int8], look: Look, rng: np.random.Generator) -> Drawing:
    """Draw one scene.

    Parameters
    ----------
    factors : ndarray of int8, shape [groups]
        One row of :attr:`carefl_secure.data.scene.Scenes.factors`.
    look : Look
        The person.
    rng : numpy.random.Generator
        Pose, scale, colours and small clutter.

    Returns
    -------
    Drawing
    """
    value = {g: GROUPS[g][int(f)] for g, f in zip(GROUPS, factors, strict=True)}
    image = Image.new("RGB", (_S, _S))
    pen = ImageDraw.Draw(image)
    jitter = rng.random(8)
    _SETTING[value["setting"]](pen, float(jitter[0]))
    child = 0.85 if look.age == 0 else 1.0
    radius = (24 + 8 * float(jitter[1])) * child
    face = _Face(
        50 + 28 * float(jitter[2]),
        42 + 10 * float(jitter[3]),
        radius,
        (float(jitter[4]) - 0.5) * 0.5,
    )
    side = -1 if face.x > _S / 2 else 1
    skin, hair = _SKIN[look.skin], (190, 190, 196) if look.age == 2 else _HAIR[look.hair]
    cloth = _CLOTH[int(jitter[5] * len(_CLOTH))]
    box = _body(pen, face, value["posture"], skin, cloth)
    _prop(pen, value["prop"], face, side)
    _head(pen, face, look, skin, hair)
    _features(pen, face, value)
    if value["posture"] == "on the face":
        pen.ellipse(face.disc(-side * 0.75, 0.62, 0.3, 0.36), fill=skin, outline=_INK)
    pixels = np.asarray(image.reduce(2), np.float32)
    gain = (0.6 if value["light"] == "dim" else 1.0) * (0.9 + 0.2 * float(jitter[6]))
    tint = np.array((0.92, 0.98, 1.18) if value["light"] == "dim" else (1.0, 1.0, 0.97), np.float32)
    pixels = pixels * gain * tint + rng.normal(0, 5, pixels.shape).astype(np.float32)
    return Drawing(
        np.clip(pixels, 0, 255).astype(np.uint8),
        (box[0] / 2, box[1] / 2, box[2] / 2, box[3] / 2),
        np.array(face.line(list(SPOTS)), np.float32) / np.float32(2),
    )


def _body(
    pen: ImageDraw.ImageDraw, face: _Face, posture: str, skin: Colour, cloth: Colour
) -> tuple[float, float, float, float]:
    r, x, shoulder = face.r, face.x, face.y + 1.15 * face.r
    pen.rectangle((x - 0.3 * r, face.y, x + 0.3 * r, shoulder + 6), fill=skin)
    pen.rounded_rectangle((x - 1.1 * r, shoulder, x + 1.1 * r, _S + 20), radius=10, fill=cloth)
    width = int(0.42 * r)
    left, right, top = x - 1.15 * r, x + 1.15 * r, face.y - 1.25 * r

    def arm(points: list[Point]) -> None:
        pen.line(points, fill=cloth, width=width, joint="curve")
        hx, hy = points[-1]
        pen.ellipse(
            (hx - 0.26 * r, hy - 0.26 * r, hx + 0.26 * r, hy + 0.26 * r), fill=skin, outline=_INK
        )

    if posture == "raised":
        arm([(left + 4, shoulder + 10), (left - 0.5 * r, face.y - 0.9 * r)])
        arm([(right - 4, shoulder + 10), (right + 0.5 * r, face.y - 0.9 * r)])
        left, right, top = left - 0.8 * r, right + 0.8 * r, top - 0.2 * r
    elif posture == "crossed":
        pen.line(
            [(left, shoulder + 1.0 * r), (right, shoulder + 0.7 * r)], fill=_INK, width=width + 2
        )
        arm([(left, shoulder + 0.9 * r), (right - 6, shoulder + 0.6 * r)])
        arm([(right, shoulder + 0.9 * r), (left + 6, shoulder + 0.6 * r)])
    elif posture == "reaching":
        arm([(left + 4, shoulder + 8), (left - 0.9 * r, shoulder + 0.35 * r)])
        arm([(right - 4, shoulder + 8), (right + 0.9 * r, shoulder + 0.35 * r)])
        left, right = left - 1.1 * r, right + 1.1 * r
    else:
        arm([(left + 2, shoulder + 12), (left - 2, _S + 4)])
        arm([(right - 2, shoulder + 12), (right + 2, _S + 4)])
    return (max(left, 0.0), max(top, 0.0), min(right, float(_S)), float(_S))


def _head(pen: ImageDraw.ImageDraw, face: _Face, look: Look, skin: Colour, hair: Colour) -> None:
    if look.feminine:
        pen.ellipse(face.disc(0, 0.05, 1.18, 1.3), fill=hair)
        pen.rectangle(
            (face.x - 1.15 * face.r, face.y, face.x + 1.15 * face.r, face.y + 1.2 * face.r),
            fill=hair,
        )
    else:
        pen.ellipse(face.disc(0, -0.22, 1.02, 0.95), fill=hair)
    pen.ellipse(face.disc(0, 0.05, 0.92, 1.02), fill=skin)
    pen.polygon(face.line([(-0.86, -0.5), (0.86, -0.5), (0.5, -0.98), (-0.5, -0.98)]), fill=hair)
    if look.age == 2:
        for v in (0.3, 0.42):
            pen.line(face.line([(-0.72, v), (-0.52, v + 0.05)]), fill=_INK, width=1)
            pen.line(face.line([(0.72, v), (0.52, v + 0.05)]), fill=_INK, width=1)
    pen.line(face.line([(0, -0.02), (0.07, 0.2), (-0.04, 0.22)]), fill=_INK, width=2)


def _features(pen: ImageDraw.ImageDraw, face: _Face, value: dict[str, str]) -> None:
    brow = {
        "level": (-0.38, -0.38),
        "lowered": (-0.46, -0.2),
        "raised": (-0.62, -0.62),
        "inner raised": (-0.3, -0.58),
    }[value["brows"]]
    height = {"open": 0.13, "wide": 0.23, "narrowed": 0.06, "closed": 0.0}[value["eyes"]]
    for s in (-1, 1):
        pen.line(face.line([(s * 0.6, brow[0]), (s * 0.16, brow[1])]), fill=_INK, width=4)
        if height:
            pen.ellipse(face.disc(s * 0.36, -0.12, 0.2, height), fill=(250, 250, 250), outline=_INK)
            pen.ellipse(face.disc(s * 0.36, -0.12, 0.08, min(0.1, height)), fill=_INK)
        else:
            arc = [(s * 0.54, -0.14), (s * 0.36, -0.06), (s * 0.18, -0.14)]
            pen.line(face.line(arc), fill=_INK, width=3)
    mouth = value["mouth"]
    if mouth == "flat":
        pen.line(face.line([(-0.34, 0.52), (0.34, 0.52)]), fill=_INK, width=4)
    elif mouth == "smile":
        arc = [(-0.42, 0.4), (-0.2, 0.58), (0.2, 0.58), (0.42, 0.4)]
        pen.line(face.line(arc), fill=_INK, width=4, joint="curve")
    elif mouth == "laugh":
        arc = [(-0.46, 0.36), (0.46, 0.36), (0.26, 0.74), (-0.26, 0.74)]
        pen.polygon(face.line(arc), fill=(150, 30, 40), outline=_INK)
        pen.line(face.line([(-0.4, 0.41), (0.4, 0.41)]), fill=(250, 250, 250), width=4)
    elif mouth == "frown":
        arc = [(-0.4, 0.68), (-0.2, 0.48), (0.2, 0.48), (0.4, 0.68)]
        pen.line(face.line(arc), fill=_INK, width=4, joint="curve")
    elif mouth == "round":
        pen.ellipse(face.disc(0, 0.56, 0.2, 0.27), fill=(110, 24, 34), outline=_INK)
    else:
        arc = [(-0.4, 0.5), (-0.2, 0.62), (0.0, 0.46), (0.2, 0.62), (0.4, 0.44)]
        pen.line(face.line(arc), fill=_INK, width=4)
    mark = value["mark"]
    if mark == "tears":
        for s in (-1, 1):
            pen.ellipse(face.disc(s * 0.42, 0.22, 0.1, 0.2), fill=(90, 160, 255))
    elif mark == "blush":
        for s in (-1, 1):
            pen.ellipse(face.disc(s * 0.56, 0.24, 0.19, 0.13), fill=(236, 96, 110))
    elif mark == "sweat":
        for u, v in ((-0.62, -0.62), (0.1, -0.74), (0.64, -0.5)):
            pen.ellipse(face.disc(u, v, 0.1, 0.15), fill=(150, 220, 255), outline=(60, 120, 180))


def _prop(pen: ImageDraw.ImageDraw, prop: str, face: _Face, side: int) -> None:
    x, y = (104.0, 96.0) if side > 0 else (24.0, 96.0)
    if prop == "book":
        pen.polygon(
            [(x - 18, y - 10), (x, y - 4), (x, y + 18), (x - 18, y + 12)],
            fill=(250, 250, 240),
            outline=_INK,
        )
        pen.polygon(
            [(x + 18, y - 10), (x, y - 4), (x, y + 18), (x + 18, y + 12)],
            fill=(230, 230, 220),
            outline=_INK,
        )
    elif prop == "friend":
        pen.rectangle((x - 14, y + 2, x + 14, _S), fill=(236, 130, 60))
        pen.ellipse((x - 12, y - 24, x + 12, y + 4), fill=(224, 176, 132), outline=_INK)
        pen.arc((x - 7, y - 16, x + 7, y - 2), 20, 160, fill=_INK, width=2)
    elif prop == "trophy":
        pen.polygon(
            [(x - 14, y - 22), (x + 14, y - 22), (x + 5, y + 2), (x - 5, y + 2)],
            fill=(250, 206, 40),
            outline=_INK,
        )
        pen.rectangle((x - 10, y + 8, x + 10, y + 16), fill=(120, 84, 20))
        pen.line([(x, y), (x, y + 8)], fill=(250, 206, 40), width=5)
    elif prop == "bandage":
        pen.line(face.line([(-0.8, -0.86), (0.9, -0.62)]), fill=(255, 255, 255), width=11)
        pen.rectangle((x - 14, y - 14, x + 14, y + 14), fill=(255, 255, 255), outline=_INK)
        pen.line([(x - 8, y), (x + 8, y)], fill=(220, 30, 30), width=6)
        pen.line([(x, y - 8), (x, y + 8)], fill=(220, 30, 30), width=6)
    elif prop == "pillow":
        pen.rounded_rectangle(
            (x - 22, y - 12, x + 22, y + 18), radius=10, fill=(200, 214, 255), outline=_INK
        )
        pen.line([(x - 14, y - 4), (x + 14, y + 10)], fill=(120, 140, 210), width=3)
    elif prop == "gift":
        pen.rectangle((x - 15, y - 12, x + 15, y + 16), fill=(214, 40, 140), outline=_INK)
        pen.line([(x, y - 12), (x, y + 16)], fill=(250, 240, 90), width=5)
        pen.line([(x - 15, y + 2), (x + 15, y + 2)], fill=(250, 240, 90), width=5)
    elif prop == "fire":
        pen.polygon(
            [
                (x - 16, y + 18),
                (x - 18, y - 6),
                (x - 6, y - 2),
                (x, y - 26),
                (x + 8, y - 4),
                (x + 18, y - 10),
                (x + 16, y + 18),
            ],
            fill=(250, 110, 20),
        )
        pen.polygon(
            [(x - 8, y + 18), (x - 6, y + 2), (x + 1, y - 8), (x + 8, y + 18)], fill=(255, 226, 70)
        )


def _sky(pen: ImageDraw.ImageDraw, top: Colour, bottom: Colour, horizon: float) -> None:
    pen.rectangle((0, 0, _S, horizon), fill=top)
    pen.rectangle((0, horizon, _S, _S), fill=bottom)


def _park(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (150, 205, 250), (96, 176, 84), 70 + 12 * j)
    for x in (6 + 20 * j, 100 + 16 * j):
        pen.rectangle((x + 6, 40, x + 12, 84), fill=(110, 74, 40))
        pen.ellipse((x - 10, 8, x + 28, 54), fill=(40, 128, 56))


def _beach(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (120, 200, 255), (240, 214, 150), 84)
    pen.rectangle((0, 50 + 10 * j, _S, 84), fill=(30, 110, 200))
    pen.ellipse((92, 6 + 8 * j, 116, 30 + 8 * j), fill=(255, 232, 90))


def _home(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (236, 206, 170), (150, 100, 60), 100)
    pen.rectangle(
        (8 + 10 * j, 12, 36 + 10 * j, 44), fill=(170, 220, 250), outline=(110, 70, 40), width=3
    )
    pen.polygon([(98, 10), (116, 10), (124, 34), (90, 34)], fill=(255, 236, 130))
    pen.line([(107, 34), (107, 100)], fill=(90, 60, 40), width=3)


def _office(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (206, 212, 220), (120, 126, 136), 96)
    for x in (4, 92):
        for y in (8, 34, 60):
            pen.rectangle(
                (x + 6 * j, y, x + 28 + 6 * j, y + 16), fill=(150, 160, 176), outline=(84, 90, 104)
            )


def _hospital(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (222, 244, 240), (160, 206, 204), 92)
    x = 12 + 8 * j
    pen.rectangle((x, 8, x + 26, 34), fill=(255, 255, 255), outline=(90, 160, 150), width=2)
    pen.line([(x + 13, 12), (x + 13, 30)], fill=(40, 170, 110), width=6)
    pen.line([(x + 4, 21), (x + 22, 21)], fill=(40, 170, 110), width=6)
    pen.line([(112, 0), (112, 90)], fill=(150, 160, 170), width=3)
    pen.rounded_rectangle(
        (104, 16, 120, 44), radius=5, fill=(190, 225, 255), outline=(90, 110, 130)
    )


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
            colour = ((230, 70, 60), (240, 220, 80), (80, 140, 240))[
                (row * 5 + column + int(9 * j)) % 3
            ]
            x, y = column * 12 + 4 * (row % 2), 20 + row * 15
            pen.ellipse((x, y, x + 9, y + 9), fill=colour)
    pen.line([(0, 100), (_S, 100)], fill=(240, 255, 240), width=3)


def _cemetery(pen: ImageDraw.ImageDraw, j: float) -> None:
    _sky(pen, (150, 156, 166), (96, 108, 92), 88)
    for x in (4 + 10 * j, 94 + 8 * j):
        pen.rounded_rectangle(
            (x, 48, x + 24, 100), radius=11, fill=(128, 128, 134), outline=(70, 70, 76)
        )
        pen.line([(x + 12, 56), (x + 12, 78)], fill=(60, 60, 66), width=3)
        pen.line([(x + 6, 63), (x + 18, 63)], fill=(60, 60, 66), width=3)


_SETTING: dict[str, Callable[[ImageDraw.ImageDraw, float], None]] = {
    "park": _park,
    "beach": _beach,
    "home": _home,
    "office": _office,
    "hospital": _hospital,
    "alley": _alley,
    "stadium": _stadium,
    "cemetery": _cemetery,
}
