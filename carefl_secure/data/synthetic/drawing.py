"""Draws one scene: a person with a face built from action units, in a setting, with a prop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from carefl_secure.data.synthetic.background import CANVAS, INK, SETTING, SPOTS, Colour, Face, Point, draw_prop
from carefl_secure.data.synthetic.scene import GROUPS

_SKIN = ((255, 224, 196), (241, 194, 150), (206, 150, 106), (168, 112, 74), (126, 84, 58))
_HAIR = ((40, 28, 20), (96, 62, 30), (168, 120, 54), (60, 60, 66))
_MOUTH = {
    "flat": [(-0.34, 0.52), (0.34, 0.52)],
    "smile": [(-0.42, 0.4), (-0.2, 0.58), (0.2, 0.58), (0.42, 0.4)],
    "frown": [(-0.4, 0.68), (-0.2, 0.48), (0.2, 0.48), (0.4, 0.68)],
    "curled": [(-0.4, 0.5), (-0.2, 0.62), (0.0, 0.46), (0.2, 0.62), (0.4, 0.44)],
}
_CLOTH = ((176, 52, 52), (52, 92, 176), (60, 140, 84), (150, 96, 170), (206, 160, 60))


@dataclass(frozen=True)
class Look:
    """A person's appearance apart from emotion; one look per subject."""

    skin: int  # 0 (light) to 4 (dark)
    hair: int  # a colour id
    age: int  # 0 child, 1 adult, 2 elder
    feminine: bool  # the gender presentation: long hair


@dataclass(frozen=True)
class Drawing:
    """A finished image, and positions in its own pixels."""

    pixels: npt.NDArray[np.uint8]
    box: tuple[float, float, float, float]  # the person's (left, top, right, bottom)
    landmarks: npt.NDArray[np.float32]  # [5, 2]: eye centres, nose tip, mouth corners


def draw(factors: npt.NDArray[np.int8], look: Look, rng: np.random.Generator) -> Drawing:
    """Draw one scene from a row of `Scenes.factors`; ``rng`` decides pose, scale, colours and small clutter."""
    value = {g: GROUPS[g][int(f)] for g, f in zip(GROUPS, factors, strict=True)}
    image = Image.new("RGB", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(image)
    jitter = rng.random(8)
    SETTING[value["setting"]](pen, float(jitter[0]))
    child = 0.85 if look.age == 0 else 1.0
    radius = (24 + 8 * float(jitter[1])) * child
    face = Face(50 + 28 * float(jitter[2]), 42 + 10 * float(jitter[3]), radius, (float(jitter[4]) - 0.5) * 0.5)
    side = -1 if face.x > CANVAS / 2 else 1
    skin, hair = _SKIN[look.skin], (190, 190, 196) if look.age == 2 else _HAIR[look.hair]
    cloth = _CLOTH[int(jitter[5] * len(_CLOTH))]
    box = _body(pen, face, value["posture"], skin, cloth)
    draw_prop(pen, value["prop"], face, side)
    _head(pen, face, look, skin, hair)
    _features(pen, face, value)
    if value["posture"] == "on the face":
        pen.ellipse(face.disc(-side * 0.75, 0.62, 0.3, 0.36), fill=skin, outline=INK)
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
    pen: ImageDraw.ImageDraw, face: Face, posture: str, skin: Colour, cloth: Colour
) -> tuple[float, float, float, float]:
    r, x, shoulder = face.r, face.x, face.y + 1.15 * face.r
    pen.rectangle((x - 0.3 * r, face.y, x + 0.3 * r, shoulder + 6), fill=skin)
    pen.rounded_rectangle((x - 1.1 * r, shoulder, x + 1.1 * r, CANVAS + 20), radius=10, fill=cloth)
    width = int(0.42 * r)
    left, right, top = x - 1.15 * r, x + 1.15 * r, face.y - 1.25 * r

    def arm(points: list[Point]) -> None:
        pen.line(points, fill=cloth, width=width, joint="curve")
        hx, hy = points[-1]
        pen.ellipse((hx - 0.26 * r, hy - 0.26 * r, hx + 0.26 * r, hy + 0.26 * r), fill=skin, outline=INK)

    if posture == "raised":
        arm([(left + 4, shoulder + 10), (left - 0.5 * r, face.y - 0.9 * r)])
        arm([(right - 4, shoulder + 10), (right + 0.5 * r, face.y - 0.9 * r)])
        left, right, top = left - 0.8 * r, right + 0.8 * r, top - 0.2 * r
    elif posture == "crossed":
        pen.line([(left, shoulder + 1.0 * r), (right, shoulder + 0.7 * r)], fill=INK, width=width + 2)
        arm([(left, shoulder + 0.9 * r), (right - 6, shoulder + 0.6 * r)])
        arm([(right, shoulder + 0.9 * r), (left + 6, shoulder + 0.6 * r)])
    elif posture == "reaching":
        arm([(left + 4, shoulder + 8), (left - 0.9 * r, shoulder + 0.35 * r)])
        arm([(right - 4, shoulder + 8), (right + 0.9 * r, shoulder + 0.35 * r)])
        left, right = left - 1.1 * r, right + 1.1 * r
    else:
        arm([(left + 2, shoulder + 12), (left - 2, CANVAS + 4)])
        arm([(right - 2, shoulder + 12), (right + 2, CANVAS + 4)])
    return (max(left, 0.0), max(top, 0.0), min(right, float(CANVAS)), float(CANVAS))


def _head(pen: ImageDraw.ImageDraw, face: Face, look: Look, skin: Colour, hair: Colour) -> None:
    if look.feminine:
        pen.ellipse(face.disc(0, 0.05, 1.18, 1.3), fill=hair)
        pen.rectangle((face.x - 1.15 * face.r, face.y, face.x + 1.15 * face.r, face.y + 1.2 * face.r), fill=hair)
    else:
        pen.ellipse(face.disc(0, -0.22, 1.02, 0.95), fill=hair)
    pen.ellipse(face.disc(0, 0.05, 0.92, 1.02), fill=skin)
    pen.polygon(face.line([(-0.86, -0.5), (0.86, -0.5), (0.5, -0.98), (-0.5, -0.98)]), fill=hair)
    if look.age == 2:
        for v in (0.3, 0.42):
            pen.line(face.line([(-0.72, v), (-0.52, v + 0.05)]), fill=INK, width=1)
            pen.line(face.line([(0.72, v), (0.52, v + 0.05)]), fill=INK, width=1)
    pen.line(face.line([(0, -0.02), (0.07, 0.2), (-0.04, 0.22)]), fill=INK, width=2)


def _features(pen: ImageDraw.ImageDraw, face: Face, value: dict[str, str]) -> None:
    brow = {
        "level": (-0.38, -0.38),
        "lowered": (-0.46, -0.2),
        "raised": (-0.62, -0.62),
        "inner raised": (-0.3, -0.58),
    }[value["brows"]]
    height = {"open": 0.13, "wide": 0.23, "narrowed": 0.06, "closed": 0.0}[value["eyes"]]
    for s in (-1, 1):
        pen.line(face.line([(s * 0.6, brow[0]), (s * 0.16, brow[1])]), fill=INK, width=4)
        if height:
            pen.ellipse(face.disc(s * 0.36, -0.12, 0.2, height), fill=(250, 250, 250), outline=INK)
            pen.ellipse(face.disc(s * 0.36, -0.12, 0.08, min(0.1, height)), fill=INK)
        else:
            arc = [(s * 0.54, -0.14), (s * 0.36, -0.06), (s * 0.18, -0.14)]
            pen.line(face.line(arc), fill=INK, width=3)
    mouth = value["mouth"]
    if mouth == "laugh":
        arc = [(-0.46, 0.36), (0.46, 0.36), (0.26, 0.74), (-0.26, 0.74)]
        pen.polygon(face.line(arc), fill=(150, 30, 40), outline=INK)
        pen.line(face.line([(-0.4, 0.41), (0.4, 0.41)]), fill=(250, 250, 250), width=4)
    elif mouth == "round":
        pen.ellipse(face.disc(0, 0.56, 0.2, 0.27), fill=(110, 24, 34), outline=INK)
    else:
        pen.line(face.line(_MOUTH[mouth]), fill=INK, width=4, joint="curve" if mouth in ("smile", "frown") else None)
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
