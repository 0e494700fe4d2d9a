"""Use of a trained model: labels for images of one's own, files of scores, and export as one merged checkpoint."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any, Literal, TextIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from carefl_secure.data.readers.file_kinds import NOT_READ, PLUGINS, how_to_convert, suffix_of
from carefl_secure.data.readers.images import decode, to_rgb
from carefl_secure.data.readers.inventory import NO_IMAGE, Inventory
from carefl_secure.errors import ConfigError, DataError, ModelError, RunError
from carefl_secure.evaluation.decisions import decide
from carefl_secure.model.saved import merge, save_merged
from carefl_secure.model.vision.encode import encode_images
from carefl_secure.run_folder import write_atomically
from carefl_secure.runs.saved_model.task import FILE, MERGED, read_task, task_scorer, thresholds_of, write_task

Picture = Image.Image | str | Path


@dataclass(frozen=True)
class Prediction:
    """The answer to one image."""

    labels: tuple[str, ...]  # those given, the best first
    scores: Mapping[
        str, float
    ]  # of all labels, the best first: log-odds where several may hold, else log-probabilities
    thresholds: Mapping[str, float] | None  # the lowest scores at which labels are given; None where the best is

    def probability(self, label: str) -> float:
        """Return the probability that a score stands for, between 0 and 1."""
        score = self.scores[label]
        return math.exp(score) if self.thresholds is None else 0.5 * (1 + math.tanh(score / 2))

    def to_json(self, **named: object) -> dict[str, Any]:
        """Return plain JSON values after those of ``named``; a threshold of infinity is null."""
        cuts = None
        if self.thresholds is not None:
            cuts = {label: cut if math.isfinite(cut) else None for label, cut in self.thresholds.items()}
        return {**named, "labels": list(self.labels), "scores": dict(self.scores), "thresholds": cuts}


class TrainedModel:
    """A run's model, ready to label images.

    ``folder`` is that of a run, of its adapter, or of a merged checkpoint; ``batch`` images go
    through the model at once; ``model`` are settings of that section in place of the run's own.
    """

    def __init__(self, folder: Path, batch: int = 16, **model: object) -> None:
        held = folder if (folder / FILE).is_file() else folder / "adapter"
        self.task, self._batch = read_task(held), batch
        self.scorer = task_scorer(self.task, held, **model)
        self.labels, self._cuts = self.scorer.space.labels, thresholds_of(self.task)

    def predict(self, image: Picture) -> Prediction:
        """Score one image, cropped as the run's view asks; `stream` takes many. DataError if it is unreadable."""
        ((_, answer),) = self.stream([image])
        if isinstance(answer, DataError):
            raise answer
        return answer

    def stream(self, images: Iterable[Picture]) -> Iterator[tuple[Picture, Prediction | DataError]]:
        """Yield each image, at most ``batch`` in memory, with its answer, or with why it cannot be read."""
        rest = iter(images)
        while part := list(islice(rest, self._batch)):
            read = [_read(one) for one in part]
            fine = [one for one in read if isinstance(one, Image.Image)]
            rows = iter(self.scores(fine) if fine else ())
            for one, image in zip(part, read, strict=True):
                yield one, image if isinstance(image, DataError) else predicted(self.labels, next(rows), self._cuts)

    def scores(self, images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
        """Return the scores of some images, [images, labels], all of them in memory at once."""
        # Of what is only predicted, no features are kept.
        base, size = self.scorer.adapter.base, self._batch
        parts = [images[start : start + size] for start in range(0, len(images), size)]
        return np.concatenate([self.scorer.all(encode_images(base, part), size) for part in parts])


def predicted(labels: Sequence[str], row: Any, cuts: Mapping[str, float] | None) -> Prediction:
    """Return the prediction that a row of scores, [labels], comes to."""
    limits = None if cuts is None else np.array([cuts[name] for name in labels])
    given = decide(np.asarray(row)[None], limits)[0]
    order = np.argsort(-np.asarray(row), kind="stable")
    return Prediction(tuple(labels[i] for i in order if given[i]), {labels[i]: float(row[i]) for i in order}, cuts)


def image_files(given: Iterable[Path], said: Callable[[str], None] = lambda text: None) -> list[Path]:
    """Return files as they are given, and the images below folders, sorted, also of kinds that cannot be read here.

    ``said`` is called with what is left out of folders. DataError is raised where nothing remains, a path does not
    exist, or a folder cannot be listed.
    """
    found: list[Path] = []
    for path in given:
        if not os.path.lexists(path):
            raise DataError(f"{path} does not exist; give images, or folders of images")
        if not path.is_dir():
            found.append(path)
            continue
        inside = Inventory(path)
        unread = [name for name in inside.archives if suffix_of(name) in (*PLUGINS, *NOT_READ)]
        found += [path / name for name in sorted((*inside.images, *unread))]
        inside.left |= dict.fromkeys({*inside.archives} - {*unread}, NO_IMAGE)
        inside.count(())
        for reason, count in inside.skipped.dropped.items():
            said(f"left out of {path}: {count} x {reason}, such as {', '.join(inside.skipped.examples(reason))}")
    if not found:
        raise DataError("there are no images in what was given; give images, or folders of images")
    return found


def _read(one: Picture) -> Image.Image | DataError:
    if isinstance(one, Image.Image):
        return to_rgb(one)
    try:
        str(one).encode()  # results hold the name
        return decode(Path(one))
    except UnicodeEncodeError:
        return DataError(f"the name of {str(one)!r} is not UTF-8; rename it")
    except DataError as error:
        fix = how_to_convert(str(one), str(Path(one).parent))
        return DataError(f"{one} {fix}") if fix else error


class ScoreFile:
    """Writes predictions as they come, as CSV or JSON Lines."""

    def __init__(self, file: TextIO, *, table: bool) -> None:
        self._file, self._rows = file, csv.writer(file) if table else None
        if self._rows is not None:
            self._rows.writerow(["image", "label", "score", "threshold", "given", "true"])

    def write(self, image: str, found: Prediction, true: Sequence[str] | None = None) -> None:
        """Write one image; ``true`` are its labels, where they are known."""
        if self._rows is None:
            known = {} if true is None else {"true": list(true)}
            self._file.write(json.dumps(found.to_json(image=image, **known)) + "\n")
            return
        for label, score in found.scores.items():
            cut = math.inf if found.thresholds is None else found.thresholds[label]
            limit, right = cut if math.isfinite(cut) else "", "" if true is None else int(label in true)
            self._rows.writerow([image, label, score, limit, int(label in found.labels), right])


def check_score_file(path: Path) -> None:
    """Refuse (ConfigError) a file whose suffix sets no format, and one that holds anything but earlier scores."""
    if path.suffix not in (".csv", ".jsonl"):
        raise ConfigError(f"{path} should end in .csv or .jsonl, which sets its format")
    if path.is_file():
        with path.open("rb") as file:
            first = file.readline(1000)
        if first and not first.startswith(b"image," if path.suffix == ".csv" else b'{"image":'):
            raise ConfigError(f"{path} exists and holds no scores of images; choose another file, or remove it")


@contextmanager
def score_file(path: Path) -> Iterator[ScoreFile]:
    """Open a file for its owner alone; ConfigError for an unknown suffix, RunError where it cannot be written."""
    check_score_file(path)
    try:
        path.touch(mode=0o600)
        with path.open("w", encoding="utf-8", newline="") as file:
            yield ScoreFile(file, table=path.suffix == ".csv")
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; choose another file") from error


TOLERANCE = 1e-3
"""How far merging may move a score, a log-probability or log-odds, in float32, before rounding."""

_GREYS = [Image.new("RGB", (64, 64), (shade,) * 3) for shade in (64, 127, 192, 255)]
_CARD = Template((Path(__file__).parent / "templates" / "merged.md").read_text(encoding="utf-8"))


def export_merged(run: Path, out: Path, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> str:
    """Merge a run's adapter into a whole float copy of its base, and write it in ``dtype``.

    ``out``, which must not exist, is what ``from_pretrained`` and `TrainedModel` take. Returned, and in its
    ``README.md``, is how far storing moves scores from those of the adapter on the whole base, both computed in
    float32, on public images: four grey ones and four gradients. Scores of a run whose base is quantised differ more,
    as the merged one is not. ModelError is raised where the adapter is missing or damaged, or merging moves a score by
    more than :data:`TOLERANCE`; RunError where ``out`` exists or cannot be written.
    """
    if out.exists():
        raise RunError(f"{out} exists already; name another folder with --out, or remove it")
    whole: dict[str, Any] = {"quantization": "none", "compute_dtype": "float32"}
    model = TrainedModel(run, **whole)
    images = _GREYS + [Image.linear_gradient("L").rotate(90 * turn).convert("RGB") for turn in range(4)]
    before = model.scores(images)
    merge(model.scorer.adapter)
    moved = float(np.abs(model.scores(images) - before).max())
    if not moved <= TOLERANCE:
        raise ModelError(f"merging moves a score by {moved:.3g}, above {TOLERANCE}; keep base and adapter apart")
    settings = {**model.task["settings"], "model": {**model.task["settings"]["model"], "revision": None, **whole}}
    about = {"base": MERGED, "base_sha256": "", "revision": None, "quantization": None, "dtype": "float32"}
    try:
        save_merged(model.scorer.adapter, out, dtype)
        write_task({**model.task, **about, "settings": settings}, out)
        found = TrainedModel(out).scores(images)
        off, same = np.abs(found - before), int((found.argmax(1) == before.argmax(1)).sum())
        said = (
            f"{dtype} moves scores by {off.mean():.2g} on average and {off.max():.2g} at most; the highest is that of "
            f"the same label for {same} of {len(images)} public images"
        )
        write_atomically(out / "README.md", _CARD.substitute(name=run.name, dtype=dtype, moved=said).encode())
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}; choose another folder with --out") from error
    return said
