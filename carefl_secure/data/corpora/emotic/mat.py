"""EMOTIC as published: images in four folders and one ``Annotations.mat`` (arXiv 2003.13401).

A record is one person in one image. Train has one annotator per person, val and test have several:
a person's categories are the *union* over annotators and the continuous values their *mean*, which
is what the official evaluation uses. Label density, and with it every score, therefore differs by
split. Boxes are taken as pixel corners and cut to the image as it is on disk; the official code
counts pixels from 1, which is not corrected, so that all forms of the corpus agree.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, SplitBuilder
from carefl_secure.data.corpora.emotic import person as emotic
from carefl_secure.data.records import EMOTIC
from carefl_secure.errors import DataError
from carefl_secure.progress import SILENT, Reporter, tracked

_MAT_HEAD = 128
_COMPRESSED = 15


def _verify_mat(path: Path) -> None:
    """Walk over the variables of a level 5 file: SciPy trusts the lengths it states, and crashes on a damaged one."""
    content = path.read_bytes()
    if len(content) < _MAT_HEAD + 8 or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("it has not the head of a MATLAB file")
    major = content[125 if content[126:128] == b"IM" else 124]
    if major == 2:
        raise NotImplementedError
    if major != 1:
        raise ValueError("it has not the head of a MATLAB file")
    order, at = ("<" if content[126:128] == b"IM" else ">"), _MAT_HEAD
    while at < len(content):
        if at + 8 > len(content):
            raise ValueError("it was cut off")
        kind, length = struct.unpack_from(f"{order}II", content, at)
        at += 8
        if at + length > len(content):
            raise ValueError("it was cut off, or a length in it is damaged")
        if kind == _COMPRESSED:
            stream = zlib.decompressobj()
            stream.decompress(content[at : at + length])
            if not stream.eof:
                raise ValueError("a variable in it was cut off")
        at += length


def read_mat(path: Path) -> Mapping[str, Any]:
    """Return the variables of a MATLAB file: structs as objects, single values bare; `DataError` if unreadable."""
    try:
        _verify_mat(path)
        stored: Mapping[str, Any] = loadmat(path, squeeze_me=True, struct_as_record=False)
    except NotImplementedError as error:
        raise DataError(f"{path} was saved in MATLAB's format 7.3; save it again with '-v7'") from error
    except (OSError, ValueError, TypeError, KeyError, EOFError, OverflowError, MatReadError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a MATLAB file: {error}; fetch it again") from error
    return stored


_NOWHERE = (math.nan,) * 3


def mat_file(root: Path) -> Path | None:
    """Return the annotation file below ``root``, where there is one."""
    for name in (
        "Annotations/Annotations.mat",
        "Annotations.mat",
        "Annotations/Annotations/Annotations.mat",
        "CVPR17_Annotations.mat",
        "Annotations/CVPR17_Annotations.mat",
    ):
        if (root / name).is_file():
            return root / name
    return None


def _many(value: Any) -> list[Any]:
    """Return what may be one thing, several or none as a list; a word is one thing."""
    if value is None:
        return []
    return list(value.ravel()) if isinstance(value, np.ndarray) else [value]


def _words(value: Any) -> list[str]:
    return [str(word) for word in _many(value) if str(word).strip()]


def _text(person: Any, *names: str) -> str:
    """Return the first of some fields; several annotators who disagree give nothing."""
    for name in names:
        words = set(_words(getattr(person, name, None)))
        if words:
            return words.pop() if len(words) == 1 else ""
    return ""


def _vad(value: Any) -> emotic.Vad:
    rows = []
    for one in _many(value):
        parts = [_many(getattr(one, name, None)) for name in ("valence", "arousal", "dominance")]
        if all(len(part) == 1 for part in parts):
            rows.append([float(part[0]) for part in parts])
    finite = [row for row in rows if all(map(math.isfinite, row))]
    if not finite:
        return _NOWHERE
    valence, arousal, dominance = np.mean(finite, 0).tolist()
    return valence, arousal, dominance


def _person(image: Any, number: int, person: Any, origin: str) -> emotic.Person:
    where = f"{str(image.folder).strip().strip('/')}/{str(image.filename).strip()}"
    corners = [float(value) for value in _many(getattr(person, "body_bbox", None))]
    if len(corners) != 4:
        raise DataError(f"{origin}: body_bbox has {len(corners)} numbers where four are needed")
    annotators = _many(getattr(person, "annotations_categories", None))
    words = [word for one in annotators for word in _words(getattr(one, "categories", None))]
    words = words or _words(getattr(person, "combined_categories", None))
    vad = _vad(getattr(person, "annotations_continuous", None))
    if math.isnan(vad[0]):
        vad = _vad(getattr(person, "combined_continuous", None))
    size = getattr(image, "image_size", None)  # by name: the order of its fields differs
    width, height = (_many(getattr(size, name, None)) for name in ("n_col", "n_row"))
    return emotic.Person(
        place=where.replace("\\", "/"),
        number=number,
        box=(corners[0], corners[1], corners[2], corners[3]),
        labels=emotic.category_ids(words, origin),
        vad=vad,
        gender=emotic.gender(_text(person, "gender", "annotations_gender"), origin),
        age=emotic.age_group(_text(person, "age", "annotations_age"), origin),
        stated=(int(width[0]), int(height[0])) if width and height else None,
    )


def _images(path: Path) -> dict[str, list[Any]]:
    stored = read_mat(path)
    found = {split: _many(stored[split]) for split in emotic.SPLITS if split in stored}
    if not found:
        raise DataError(f"{path} has none of the variables train, val and test: not EMOTIC's")
    for split, images in found.items():
        for field in ("filename", "folder", "person"):
            if any(not hasattr(image, field) for image in images):
                raise DataError(f"{path}: an image of {split} lacks the field {field!r}; fetch the file again")
    return found


def load_emotic(root: Path, *, view: emotic.View = "image", reporter: Reporter = SILENT) -> dict[str, FileCorpus]:
    """Read EMOTIC from ``Annotations.mat`` and the image folders.

    ``root`` holds ``Annotations/Annotations.mat`` and ``emotic/mscoco`` and so on. The continuous values are in
    ``extras["vad"]``. View ``image`` is the whole image with the person's box, ``person`` what is inside the box. Only
    persons with valence, arousal and dominance are kept: the population of the public converter (23,266, 3,315 and
    7,203) and not that of the file (23,706, 3,334 and 7,280).
    """
    annotation = mat_file(root)
    if annotation is None:
        raise DataError(f"{root} has no Annotations/Annotations.mat; put EMOTIC's there")
    images_in = emotic.image_root(root, annotation.name.startswith("CVPR17"))
    if images_in is None:
        raise DataError(
            f"{root} has EMOTIC's annotation but not its images; unpack the image archive so that "
            f"{root / 'emotic' / 'mscoco'} and its neighbours are there"
        )
    corpora = {}
    for split, images in _images(annotation).items():
        builder = SplitBuilder(f"emotic-{view}/{split}", EMOTIC)
        for at, image in enumerate(tracked(images, reporter, f"reading EMOTIC {split}"), 1):
            for number, found in enumerate(_many(image.person), 1):
                origin = f"{annotation.name} {split} image {at} person {number}"
                person = _person(image, number, found, origin)
                emotic.add_person(builder, person, images_in, view)
        builder.stated["images"] = len({f"{one.folder}/{one.filename}" for one in images})
        builder.stated["persons"] = len(builder) + builder.skipped.total
        corpora[split] = builder.corpus("check that the image folders are complete")
    return corpora


FORMAT = CorpusFormat(
    "emotic-mat",
    "EMOTIC: Annotations/Annotations.mat",
    tasks=lambda root, named: ("emotic",) if named or mat_file(root) else (),
    load=lambda root, how: load_emotic(root, view=how.view, reporter=how.reporter),
    views=("image", "person"),
    splits=emotic.SPLITS,
    annotation=("*annotations.mat",),
)
