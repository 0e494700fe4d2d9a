"""Clips as records: several frames of one video, evenly spaced, that are asked about together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from PIL import Image

from carefl_secure.data.deduplication.image_hashes import ImageHash
from carefl_secure.data.readers.images import frame_rate
from carefl_secure.data.records import Corpus, Record
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError

_RATE = 24.0  # frames per second of a clip that came as images, which SmolVLM2's processor assumes too


@dataclass(frozen=True)
class Clip:
    """One record of several frames."""

    record: Record
    frames: tuple[int, ...]  # places in the corpus of frames
    seconds: tuple[int, ...]  # whole seconds from the clip's first frame to each


@dataclass(frozen=True)
class Clips(Subset):
    """A corpus of frames as one of clips; ``indices`` are their middle frames, which `image` returns.

    Guarantees
    ----------
    A frame is in one record at most, so the unit ``record`` is a whole clip. Another clip of the same video is another
    record, with the same subject.
    """

    clips: Sequence[Clip]

    @property
    def records(self) -> Sequence[Record]:
        """The clips."""
        return [clip.record for clip in self.clips]


def as_clips(corpus: Corpus, most: int, hashes: Sequence[ImageHash] = ()) -> tuple[Clips, list[ImageHash]]:
    """Join the frames of each clip that have the same labels to one record of at most ``most`` of them.

    Frames are chosen as SmolVLM2's processor chooses them: the first, the last, and others evenly between. The hashes
    of those chosen are returned, by clip. `ConfigError` where a frame does not name its clip.
    """
    moments = [record.moment for record in corpus.records if record.moment is not None]
    if len(moments) < len(corpus.records):
        raise ConfigError(
            f"{len(corpus.records) - len(moments)} of {len(corpus.records)} records of {corpus.name} name no clip; "
            "set model.frames=1, or take a corpus of clips: C-EXPR-DB, or CAER-S with clips.csv"
        )
    rates = {one: _RATE if one is None else frame_rate(one) for one in {moment.video for moment in moments}}
    order = sorted(range(len(moments)), key=lambda i: (moments[i].clip, moments[i].number))
    clips: list[Clip] = []
    for (name, _), run in groupby(order, key=lambda i: (moments[i].clip, corpus.records[i].labels)):
        held = list(run)
        chosen = tuple(held[k] for k in sorted(set(np.linspace(0, len(held) - 1, most).astype(int).tolist())))
        first = moments[held[0]]
        seconds = tuple(int((moments[i].number - first.number) / rates[first.video]) for i in chosen)
        record = replace(corpus.records[held[0]], key=f"{name}/{first.number}", box=None, moment=None)
        clips.append(Clip(record, chosen, seconds))
    owner = {i: place for place, clip in enumerate(clips) for i in clip.frames}
    marks = [replace(mark, records=tuple(sorted({owner[i] for i in mark.records if i in owner}))) for mark in hashes]
    middle = [clip.frames[len(clip.frames) // 2] for clip in clips]
    return Clips(corpus, middle, clips), [mark for mark in marks if mark.records]


def frames_of(corpus: Corpus, index: int) -> tuple[list[Image.Image], tuple[int, ...] | None]:
    """Return the image of a record and None, or those of a clip with the seconds of each."""
    while isinstance(corpus, Subset) and not isinstance(corpus, Clips):
        index, corpus = corpus.indices[index], corpus.corpus
    if not isinstance(corpus, Clips):
        return [corpus.image(index)], None
    clip = corpus.clips[index]
    return [corpus.corpus.image(frame) for frame in clip.frames], clip.seconds


def most_frames(corpus: Corpus) -> int:
    """Return the most frames of a record of a corpus of clips; 0 for a corpus of images."""
    while isinstance(corpus, Subset) and not isinstance(corpus, Clips):
        corpus = corpus.corpus
    return max((len(clip.frames) for clip in corpus.clips), default=0) if isinstance(corpus, Clips) else 0
