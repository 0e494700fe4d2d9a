"""Builds two picture corpora that the embedded base was not trained on, from packages that you have downloaded.

    python -m venv /tmp/drawn && /tmp/drawn/bin/pip install resvg-py pillow dicebear-core dicebear-styles
    npm pack @iconify-json/noto @iconify-json/twemoji ...        # one .tgz for each style
    /tmp/drawn/bin/python benchmarks/shifted_corpora.py emoji --packages . --out /tmp/emoji
    /tmp/drawn/bin/python benchmarks/shifted_corpora.py avatars --count 4000 --out /tmp/avatars

Both are image folders with a ``metadata.jsonl`` (seven basic expressions). Nothing is downloaded here and nothing is
part of this package; the licences are those of the packages. *emoji*: faces whose name states an expression, one
style for each package, named in the column ``client``; each is drawn several times with small changes of place, size
and background, and all drawings of one face share a ``subject``. *avatars*: faces of two DiceBear styles with
overlapping sets of eyes, brows and mouths for each class, in grey, 48 pixels, turned, shifted and with sensor noise.
The labels are a mapping of ours. Scores on these pictures say nothing about faces.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import tarfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

EMOJI = {
    "Surprise": "astonished hushed open-mouth flushed exploding-head",
    "Fear": "fearful screaming anguished anxious cold-sweat",
    "Disgust": "nauseated vomiting unamused rolling-eyes confounded",
    "Happiness": "grinning smiling beaming joy star-struck laughing savoring",
    "Sadness": "crying sad pensive disappointed slightly-frowning frowning downcast tear",
    "Anger": "angry pouting enraged steam symbols-on-mouth cursing",
    "Neutral": "neutral expressionless without-mouth zipper-mouth",
}
"""Parts of emoji names that decide a class; a name that fits several or none is left out."""

AVATAR = {
    "Surprise": (("surprised",), ("raisedExcited", "raisedExcitedNatural", "upDown"), ("disbelief", "screamOpen")),
    "Fear": (("surprised", "side", "squint"), ("sadConcerned", "sadConcernedNatural"), ("screamOpen", "grimace")),
    "Disgust": (("squint", "eyeRoll", "side"), ("unibrowNatural", "frownNatural", "upDown"), ("vomit", "concerned")),
    "Happiness": (("happy", "default", "wink"), ("default", "raisedExcited"), ("smile", "twinkle", "tongue")),
    "Sadness": (("cry", "closed", "default"), ("sadConcerned", "sadConcernedNatural"), ("sad", "concerned")),
    "Anger": (("squint", "default"), ("angry", "angryNatural", "frownNatural"), ("grimace", "serious", "sad")),
    "Neutral": (("default", "closed", "side"), ("defaultNatural", "flatNatural"), ("default", "serious")),
}
"""Eyes, brows and mouths of the style avataaars for each class."""

PEEPS = {
    "Surprise": ("awe",),
    "Fear": ("fear", "concernedFear", "hectic"),
    "Disgust": ("contempt", "suspicious"),
    "Happiness": ("smile", "smileBig", "smileLOL", "smileTeethGap", "lovingGrin1", "cheeky"),
    "Sadness": ("concerned", "tired", "solemn"),
    "Anger": ("rage", "veryAngry", "angryWithFang"),
    "Neutral": ("blank", "calm", "serious", "eyesClosed"),
}
"""Expressions of the style open-peeps for each class."""


def drawn(svg: str, width: int) -> Image.Image:
    """Draw an SVG on a square of its own, with transparency."""
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width, height=width)))).convert(
        "RGBA"
    )


def placed(face: Image.Image, side: int, rng: random.Random, spread: float) -> Image.Image:
    """Turn, shift and scale a face on a plain background."""
    share = 1 - spread * rng.random()
    size = max(8, int(side * share))
    turned = face.rotate(rng.uniform(-60, 60) * spread, Image.Resampling.BICUBIC).resize((size, size))
    ground = Image.new("RGB", (side, side), tuple(rng.randrange(120, 256) for _ in range(3)))
    room = side - size
    ground.paste(turned, (rng.randint(0, room), rng.randint(0, room)), turned)
    return ground


def emoji(packages: Path, copies: int, rng: random.Random) -> list[tuple[Image.Image, dict[str, str]]]:
    """Draw every face of every style several times."""
    found = []
    for path in sorted(packages.glob("*.tgz")):
        style = path.stem.removeprefix("iconify-json-").rsplit("-", 1)[0]
        with tarfile.open(path) as archive:
            icons = json.load(archive.extractfile("package/icons.json"))  # type: ignore[arg-type]
        for name, icon in sorted(icons["icons"].items()):
            if "face" not in name or any(animal in name for animal in ("cat", "dog", "moon", "sun", "horns")):
                continue
            fits = [label for label, words in EMOJI.items() if any(word in name for word in words.split())]
            if len(fits) != 1:
                continue
            wide = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
            body = icon["body"].replace("currentColor", "#000")
            svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide[0]} {wide[1]}">{body}</svg>'
            face = drawn(svg, 96)
            about = {"label": fits[0], "client": style, "subject": f"{style}/{name}"}
            found += [(placed(face, 96, rng, 0.15), about) for _ in range(copies)]
    return found


def avatars(count: int, rng: random.Random) -> list[tuple[Image.Image, dict[str, str]]]:
    """Draw faces of two styles in grey, at 48 pixels, with noise."""
    from dicebear import Avatar, Style

    style = {
        name: Style(json.loads(files("dicebear_styles").joinpath(f"{name}.json").read_text("utf-8")))
        for name in ("avataaars", "open-peeps")
    }
    found = []
    for number in range(count):
        name, label = rng.choice(sorted(style)), rng.choice(sorted(AVATAR))
        options: dict[str, object] = {"seed": str(number), "size": 96}
        if name == "avataaars":
            eyes, brows, mouths = AVATAR[label]
            options |= {"eyesVariant": [rng.choice(eyes)], "eyebrowsVariant": [rng.choice(brows)]}
            options |= {"mouthVariant": [rng.choice(mouths)]}
        else:
            options |= {"expressionVariant": [rng.choice(PEEPS[label])], "maskProbability": 0}
        face = drawn(Avatar(style[name], options).to_string(), 96)
        grey = placed(face.crop((14, 10, 82, 78)), 48, rng, 0.25).convert("L")
        noisy = np.asarray(grey, np.float64) * rng.uniform(0.6, 1.1)
        noisy += np.random.default_rng(number).normal(0, 12, noisy.shape)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        found.append((image, {"label": label, "client": name, "subject": str(number)}))
    return found


def main() -> int:
    """Build one corpus."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", choices=("emoji", "avatars"))
    parser.add_argument("--packages", type=Path, default=Path(), help="folder with the .tgz files of npm pack")
    parser.add_argument("--count", type=int, default=4000, help="avatars to draw")
    parser.add_argument("--copies", type=int, default=6, help="drawings of each emoji")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    rng = random.Random(0)
    found = emoji(chosen.packages, chosen.copies, rng) if chosen.corpus == "emoji" else avatars(chosen.count, rng)
    if not found:
        print("no faces were found; give the folder with the packages by --packages", file=sys.stderr)
        return 1
    (chosen.out / "images").mkdir(parents=True)
    with (chosen.out / "metadata.jsonl").open("w") as lines:
        for place, (image, about) in enumerate(found):
            name = f"images/{place:05}.png"
            image.save(chosen.out / name)
            lines.write(json.dumps({"file_name": name, **about}) + "\n")
    print(f"{len(found)} pictures in {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
