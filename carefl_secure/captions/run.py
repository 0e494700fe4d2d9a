"""Captions for a whole corpus, each picture once; no caption goes to the reporter or into an error."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image, ImageDraw

from carefl_secure.captions.cache import CaptionCache, picture_key
from carefl_secure.captions.captioner import Captioner
from carefl_secure.captions.controls import LeakageReport, leakage
from carefl_secure.data.records import Corpus
from carefl_secure.data.splits import Subset
from carefl_secure.errors import DataError
from carefl_secure.progress import Reporter, tracked

View = Literal["full", "box", "crop"]

VIEWS: tuple[View, ...] = get_args(View)
"""``full``: the image; ``box``: with a red frame around the person; ``crop``: the person only."""

_RED = (255, 0, 0)
_MARGIN = 0.1  # of the box' longer side, on each side of a crop

Box = tuple[float, float, float, float]


def seen(image: Image.Image, box: Box | None, view: View) -> Image.Image:
    """Return the picture that a captioner gets; the given RGB image stays as it is.

    ``box`` is ``(left, top, right, bottom)`` in pixels, cut to the image; `DataError` where a view needs one.
    """
    if view == "full":
        return image
    if box is None:
        raise DataError("there is no person box, which the views box and crop need; use view full")
    width, height = image.size
    margin = _MARGIN * max(box[2] - box[0], box[3] - box[1]) if view == "crop" else 0.0
    if not all(map(math.isfinite, box)):
        raise DataError("a person box holds a number that is not finite; correct the annotation")
    left, top = max(0, math.floor(box[0] - margin)), max(0, math.floor(box[1] - margin))
    right = min(width, math.ceil(box[2] + margin))
    bottom = min(height, math.ceil(box[3] + margin))
    if right - left < 1 or bottom - top < 1:
        raise DataError("a person box is outside its image; correct the annotation")
    if view == "crop":
        return image.crop((left, top, right, bottom))
    drawn = image.copy()
    line = max(1, round(min(width, height) / 100))
    ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), outline=_RED, width=line)
    return drawn


def view_of(corpus: Corpus, index: int, view: View) -> Image.Image:
    """Return the view of one record; errors name it by its place, as its key may name a person."""
    try:
        return seen(corpus.image(index).convert("RGB"), corpus.records[index].box, view)
    except DataError as error:
        raise DataError(f"record {index} of {corpus.name}: {error}") from error


@dataclass(frozen=True)
class Captioning:
    """What one pass over the records of a corpus did."""

    corpus: str
    records: int
    made: int  # pictures captioned now
    kept: int  # records that had a caption already, from an earlier pass or an equal picture
    seconds: float  # in the model
    leakage: LeakageReport

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values, with the seconds that one caption took."""
        return asdict(self) | {"seconds_per_caption": self.seconds / self.made if self.made else None}


def open_cache(root: Path, captioner: Captioner, view: View) -> CaptionCache:
    """Open the folder of a captioner and a view below ``root``."""
    return CaptionCache(root, {**captioner.facts, "view": view})


def caption_corpus(
    corpus: Corpus, captioner: Captioner, cache: CaptionCache, view: View, reporter: Reporter, limit: int | None = None
) -> Captioning:
    """Caption what has no caption yet, among the first ``limit`` records; a stop loses one batch at most."""
    count = len(corpus.records) if limit is None else min(limit, len(corpus.records))
    task = f"captioning {count} records of {corpus.name}"
    waiting: dict[str, Image.Image] = {}
    keys: list[str] = []
    made, seconds = 0, 0.0

    def flush() -> None:
        nonlocal made, seconds
        if waiting:
            before = time.monotonic()
            said = captioner.caption(list(waiting.values()))
            seconds += time.monotonic() - before
            for key, caption in zip(waiting, said, strict=True):
                cache.put(key, caption)
            made += len(waiting)
            waiting.clear()

    for index in tracked(range(count), reporter, task):
        picture = view_of(corpus, index, view)
        key = picture_key(picture)
        keys.append(key)
        if cache.get(key) is None:
            waiting[key] = picture
        if len(waiting) == captioner.batch or index == count - 1:
            flush()
    said = [cache.get(key) or "" for key in keys]
    report = leakage(Subset(corpus, range(count)), said)
    return Captioning(corpus.name, count, made, count - made, seconds, report)


def caption_all(
    parts: Mapping[str, Corpus],
    captioner: Captioner,
    root: Path,
    view: View,
    reporter: Reporter,
    limit: int | None = None,
) -> tuple[CaptionCache, dict[str, Captioning]]:
    """Caption every split of a corpus; see :func:`caption_corpus`."""
    cache = open_cache(root, captioner, view)
    done = {name: caption_corpus(corpus, captioner, cache, view, reporter, limit) for name, corpus in parts.items()}
    return cache, done


def read_captions(corpus: Corpus, cache: CaptionCache) -> list[str]:
    """Return the caption of every record, in order; a missing one, or a cache without its view, is a `DataError`."""
    view: View = cache.facts.get("view")  # type: ignore[assignment]
    if view not in VIEWS:
        raise DataError(f"{cache.folder} does not state its view; make the captions again")
    found = [cache.get(picture_key(view_of(corpus, index, view))) for index in range(len(corpus.records))]
    out = [caption for caption in found if caption is not None]
    if len(out) < len(found):
        raise DataError(
            f"{len(found) - len(out)} of {len(found)} records of {corpus.name} have no caption in "
            f"{cache.folder}; run 'carefl-secure caption' again, it goes on where it stopped"
        )
    return out
