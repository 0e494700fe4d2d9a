"""A captioner of your own: describes each image to the model, on the client, and nobody else gets the words.

``python own_captioner.py DIR`` captions the synthetic corpus into DIR and prints the command that trains with it;
``python own_captioner.py DIR data.source=PATH`` captions images of yours. A real captioner calls a model in
``caption``. This one looks at light and colour, so that it runs anywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from carefl_secure.captions.run import caption_all
from carefl_secure.config import load_config
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.captions import caption_parts


class ColourCaptioner:
    """Says how light a picture is and which colour leads. It satisfies the protocol `Captioner`."""

    # Everything that decides a caption besides the picture: it names the folder of the captions.
    facts: Mapping[str, str | int | float | None] = {"model": "colour words", "version": 1}
    batch = 32

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        """Return one caption for each RGB image."""
        return [self._words(np.asarray(image, np.float64)) for image in images]

    def _words(self, pixels: np.ndarray) -> str:
        mean = pixels.mean(axis=(0, 1))
        light = "bright" if mean.mean() > 150 else "dark" if mean.mean() < 80 else "evenly lit"
        return f"A {light} picture, mostly {('red', 'green', 'blue')[int(mean.argmax())]}."


def main(folder: Path, *words: str) -> None:
    """Caption every split of the corpus that the settings name."""
    reporter = SilentReporter()
    splits = caption_parts(load_config(None, words), reporter)
    cache, parts = caption_all(splits, ColourCaptioner(), folder, "full", reporter)
    for name, one in parts.items():
        print(f"{name}: {one.made} captions made, {one.leakage.stem:.0%} name an emotion")
    print(f"carefl-secure train --set model.context=own --set model.context_cache={cache.folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
