"""Scores a run on C-EXPR-DB's seven classes, which it was not trained on, and by whole videos.

A run trained on RAF-DB's eleven compound classes is asked for those eleven. The four that C-EXPR lacks are masked and
the rest renormalised (`compound_to_cexpr`), and the frames of a video become one answer (`fuse_frames`). Videos
without labels, such as those of the challenge, get predictions and no figures.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.data.checks.examine import skipped_of
from carefl_secure.data.corpora.base import ReadOptions
from carefl_secure.data.corpora.cexpr_fusion import Rule, compound_to_cexpr, fuse_frames
from carefl_secure.data.open_corpus import detect
from carefl_secure.data.records import CEXPR, COMPOUND, COMPOUND_TO_CEXPR, Corpus, LabelSpace, Record, label_matrix
from carefl_secure.data.splits import Subset
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.evaluation.assess import Evaluation, Known, Scored, assess
from carefl_secure.evaluation.groups import Settings
from carefl_secure.progress import Reporter
from carefl_secure.runs.evaluation.evaluate import ScoredRun, open_other, refuse_own

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
    return label_matrix(corpus.records, corpus.space)[:, order]


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


def predictions_table(parts: Sequence[tuple[Part, Floats]], unit: str = "frames") -> str:
    """Return the CSV of the answers: a row for each video, from its scores [videos, 7] over its frames or clips."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["part", "video", unit, "truth", "class_id", "class", *CEXPR.labels])
    for part, scores in parts:
        frames = part.frames()
        for record, row in zip(part.records(), scores, strict=True):
            best = int(row.argmax())
            given = CEXPR.labels[record.labels[0]] if record.labels else ""
            about = (part.name, record.key, len(frames[record.key]), given, best, CEXPR.labels[best])
            writer.writerow([*about, *(f"{value:.6f}" for value in row)])
    return out.getvalue()


PREDICTIONS = "predictions-cexpr.csv"
"""The predictions. The columns are specific to this package: the challenge published none."""

_TINY = float(np.finfo(np.float64).tiny)
_MASKED = (
    "zero-shot: trained on RAF-DB's eleven compound classes, of which the four that C-EXPR-DB "
    "lacks are masked and the other seven renormalised"
)


@dataclass(frozen=True)
class ZeroShot:
    """What was scored and predicted."""

    run: str
    evaluation: Evaluation | None  # over videos, or single pictures of the run's own corpus; None without labels
    file: Path | None
    predictions: Path | None  # one row per video; None on the run's own corpus
    unlabelled: int  # videos without a label


def evaluate_zero_shot(
    run: Path,
    reporter: Reporter,
    *,
    data: Path | None = None,
    rule: Rule = "mean_probability",
    fold: int = 0,
    every: int = 1,
    settings: Settings | None = None,
) -> ZeroShot:
    """Score a run on the seven classes, and write the result to ``RUN/evaluation``.

    With ``data``, C-EXPR-DB as frames or videos: figures of the labelled part (``val``, or ``all`` where labels go by
    time) to ``evaluation-cexpr.json``, and predictions of it and of the unlabelled part to :data:`PREDICTIONS`.
    Intervals come from drawing videos; clips cut from one video are drawn together. Without ``data``, those records of
    the run's own test split that carry one of the seven, to ``evaluation-test-cexpr.json``. ``rule`` leads from frames
    to videos, ``fold`` is that of the labelled part, and every ``every``-th frame of a video is taken. Raises
    `ConfigError` unless trained on ``compound`` (with ``data``, or on ``cexpr``), or if ``data`` is another corpus or
    the run's own; `DataError` if nothing can be scored.
    """
    opened = ScoredRun(run, reporter)
    if data is not None:
        refuse_own(opened.config, data, "test")
        if detect(data).kind != "cexpr":
            raise ConfigError(f"{data} is not laid out as C-EXPR-DB; leave out --space to score it")
    corpora, unit = opened.corpora, "clips" if opened.config.model.frames > 1 else "frames"
    space = corpora.test.space
    _refuse_others(space, own=data is None)
    how = ReadOptions(fold=fold, every=every, reporter=reporter)
    parts = [own_part(corpora.test)] if data is None else video_parts(open_other(opened, data, how), data)
    untuned, tuned = _answers(opened, parts, space)
    chosen = settings or Settings(seed=opened.config.run.seed)

    def figures(place: int) -> Evaluation:
        part, known = parts[place], None
        if data is None:
            public = Subset(corpora.public, shared(corpora.public))
            known = Known(seven(public)) if public.records else None
        records = part.corpus.records if data is None else part.records()
        marks = seven(part.corpus) if data is None else label_matrix(records, CEXPR)
        scored = Scored(opened.name, part.corpus.name, f"{part.name} split", CEXPR, records, marks, part.images())
        scores = [np.log(_fused(part, one[place], rule)) for one in (tuned, untuned)]
        found = assess(scored, scores[0], scores[1], known, chosen)
        remarks = _remarks(part, space, rule, unit, own=data is None)
        lacking = sum(label.positives == 0 for label in found.labels)
        if lacking:
            remarks.append(f"{lacking} of the seven classes have no scored video: left out of means")
        return replace(found, remarks=(*found.remarks, *remarks))

    place = next((k for k, part in enumerate(parts) if part.labelled), None)
    evaluation = None if place is None else figures(place)
    file = table = None
    if evaluation is not None:
        suffix = "test-cexpr" if data is None else "cexpr"
        file = opened.write(f"evaluation-{suffix}.json", evaluation.as_json())
    if data is not None:
        rows = [(p, _fused(p, s, rule)) for p, s in zip(parts, tuned, strict=True)]
        table = opened.write(PREDICTIONS, predictions_table(rows, unit))
    unlabelled = sum(len(part.frames()) for part in parts if not part.labelled)
    return ZeroShot(opened.name, evaluation, file, table, unlabelled)


def _refuse_others(space: LabelSpace, *, own: bool) -> None:
    if space.labels == COMPOUND.labels or (space.labels == CEXPR.labels and not own):
        return
    advice = "score a run trained on compound (data.labels=compound)"
    if space.labels == CEXPR.labels:
        advice = "it scores them already: leave out --space"
    raise ConfigError(
        f"the run was trained on the labels {space.name}, which say nothing of C-EXPR-DB's seven compound "
        f"expressions; {advice}"
    )


def _answers(opened: ScoredRun, parts: Sequence[Part], space: LabelSpace) -> tuple[list[Floats], list[Floats]]:
    """Return the probabilities [frames, 7] of each part, untuned and tuned."""
    scorer = opened.scorer(space)
    inputs = [(opened.features(scorer, p.corpus), opened.captions(p.corpus)) for p in parts]
    eleven = space.labels == COMPOUND.labels

    def answered() -> list[Floats]:
        found = []
        for seen, words in inputs:
            scores = scorer.all(seen, opened.batch, words, opened.reporter).astype(np.float64)
            found.append(compound_to_cexpr(scores) if eleven else np.exp(scores))
        return found

    return opened.untuned_and_tuned(scorer, answered)


def _fused(part: Part, likely: Floats, rule: Rule) -> Floats:
    """Return the scores of each video, [videos, 7], above zero."""
    _, fused = fuse_frames(np.log(np.maximum(likely, _TINY)), part.videos, rule)
    return np.maximum(fused, _TINY)


def _remarks(part: Part, space: LabelSpace, rule: str, unit: str, *, own: bool) -> list[str]:
    remarks = [_MASKED] if space.labels == COMPOUND.labels else []
    if own:
        return [*remarks, "records of the four other classes are left out"]
    remarks.append(
        f"a record is a video: its {unit}, {len(part.videos)} over all videos, are fused by {rule}; "
        f"brightness and sharpness are those of the middle {unit[:-1]}"
    )
    if set(part.videos) != {record.attributes["video"] for record in part.corpus.records}:
        remarks.append("a video that is annotated with several labels counts once for each")
    remarks.extend(skipped_of(part.corpus).remarks)
    remarks.append("no result of the challenge: its labels are not public")
    return remarks
