"""The records that are scored in the seven classes of C-EXPR-DB, and the table of predictions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.data.records import CEXPR, COMPOUND_TO_CEXPR, Corpus, Record, targets
from carefl_secure.data.splits import Subset
from carefl_secure.errors import DataError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Frames of a split to be answered, and the video of each; a picture is a video of its own."""

    name: str
    corpus: Corpus
    videos: list[str]

    @property
    def labelled(self) -> bool:
        """Whether there is a truth to score against."""
        return bool(self.corpus.records[0].labels)

    def frames(self) -> Mapping[str, list[int]]:
        """Return the places of the frames of each video, videos in the order of their names."""
        found: dict[str, list[int]] = {}
        for i, video in enumerate(self.videos):
            found.setdefault(video, []).append(i)
        return dict(sorted(found.items()))

    def records(self) -> list[Record]:
        """Return one record for each video, in the order of :func:`fuse_frames`."""
        firsts = ((v, self.corpus.records[frames[0]]) for v, frames in self.frames().items())
        return [Record(video, one.labels, one.subject) for video, one in firsts]

    def images(self) -> Iterator[Image.Image]:
        """Yield the middle frame of each video."""
        return (self.corpus.image(f[len(f) // 2]) for f in self.frames().values())


def shared(corpus: Corpus) -> tuple[int, ...]:
    """Return the places of records that carry one class, and one that both label spaces have."""
    single = ((i, one.labels[0]) for i, one in enumerate(corpus.records) if len(one.labels) == 1)
    return tuple(i for i, label in single if label in COMPOUND_TO_CEXPR)


def own_part(corpus: Corpus) -> Part:
    """Return the records that carry one of the seven classes, still under their eleven ids."""
    kept = shared(corpus)
    if not kept:
        raise DataError(f"no record of {corpus.name} carries one of C-EXPR-DB's seven classes")
    return Part("test", Subset(corpus, kept), [f"{place:09d}" for place in range(len(kept))])


def seven(corpus: Corpus) -> npt.NDArray[np.float32]:
    """Return the 0/1 matrix over the seven of records that are labelled with the eleven."""
    order = sorted(COMPOUND_TO_CEXPR, key=COMPOUND_TO_CEXPR.__getitem__)
    return targets(corpus)[:, order]


def truth(records: Sequence[Record]) -> npt.NDArray[np.float32]:
    """Return the 0/1 matrix over the seven of records that are labelled with them."""
    out = np.zeros((len(records), len(CEXPR.labels)), np.float32)
    for row, record in zip(out, records, strict=True):
        row[list(record.labels)] = 1.0
    return out


def video_parts(parts: Mapping[str, Corpus], path: Path) -> list[Part]:
    """Return the labelled part that is scored, and what has no label at all."""
    labelled = [n for n in ("test", "val", "all") if n in parts and _is_labelled(parts[n])]
    blank = [name for name in parts if not _is_labelled(parts[name])]
    if not labelled and not blank:
        raise DataError(f"{path} has training videos only; give a copy with a val or test part")
    return [Part(name, parts[name], _named(parts[name])) for name in (*labelled[:1], *blank)]


def _is_labelled(corpus: Corpus) -> bool:
    return any(record.labels for record in corpus.records)


def _named(corpus: Corpus) -> list[str]:
    """Name the video of each frame; one that is annotated with several labels is cut by them."""
    videos = [record.attributes["video"] for record in corpus.records]
    held: dict[str, set[tuple[int, ...]]] = {}
    for video, record in zip(videos, corpus.records, strict=True):
        held.setdefault(video, set()).add(record.labels)
    return [
        f"{video} ({CEXPR.labels[record.labels[0]]})" if len(held[video]) > 1 else video
        for video, record in zip(videos, corpus.records, strict=True)
    ]


def predictions_table(parts: Sequence[tuple[Part, Floats]]) -> str:
    """Return the CSV of the answers: a row for each video, from its scores [videos, 7]."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["part", "video", "frames", "truth", "class_id", "class", *CEXPR.labels])
    for part, scores in parts:
        frames = part.frames()
        for record, row in zip(part.records(), scores, strict=True):
            best = int(row.argmax())
            given = CEXPR.labels[record.labels[0]] if record.labels else ""
            about = (part.name, record.key, len(frames[record.key]), given, best, CEXPR.labels[best])
            writer.writerow([*about, *(f"{value:.6f}" for value in row)])
    return out.getvalue()
