"""C-EXPR-DB: videos, or frames cut from them, of seven compound expressions (Kollias, CVPR 2023).

``C-EXPR-DB-CHALLENGE/videos/01.mp4``
    The 56 videos of the ABAW challenge. They have no public labels, and get none here.
``cropped_aligned/VIDEO/frame-N/v-VIDEO-f-N-face-K.jpg`` or ``frames/VIDEO/*.jpg``
    Frames that were extracted already. They are preferred to the videos.
``folds/split-K/{train,val,test}.txt``
    A team's own clips, labelled by that team and cut from the challenge's videos.
``annotation/VIDEO.csv``
    Labels by time.

A record is one frame. Its subject is the *video* that the frame comes from, so that splits keep a video together;
:func:`carefl_secure.data.corpora.cexpr_fusion.fuse_frames` turns frame scores into video scores. Ids are those of the
challenge; clips of the class Other are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from carefl_secure.data.corpora import cexpr_lists
from carefl_secure.data.corpora.base import CorpusFormat, FileCorpus, SplitBuilder
from carefl_secure.data.readers import images
from carefl_secure.data.readers.file_kinds import image_suffixes
from carefl_secure.data.records import CEXPR, Moment, Record
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.progress import SILENT, Reporter, tracked

_FRAMES = ("cropped_aligned", "frames")
_VIDEOS = ("videos", "trimmed_videos", ".")
_ALSO = "its test list is its val list"


def cexpr_bases(root: Path) -> list[Path]:
    """Return the folders laid out like C-EXPR-DB: the labelled part, then the challenge."""
    known = [root / "C-EXPR-DB", root / "C-EXPR-DB-CHALLENGE"]
    return [base for base in known if _is_base(base)] or ([root] if _is_base(root) else [])


def _is_base(base: Path) -> bool:
    if not base.is_dir():
        return False
    if (base / "cropped_aligned").is_dir():
        return True
    if any(base.glob("folds/*/train.txt")) or any(base.glob("folds/*/test.txt")):
        return True
    return base.resolve().name.upper().startswith("C-EXPR") and any(
        (base / name).is_dir() for name in ("frames", "videos", "trimmed_videos")
    )


def video_names(base: Path) -> list[str]:
    """Return the names of all videos there are, extracted or not, sorted."""
    names = {
        sub.name for folder in _FRAMES if (base / folder).is_dir() for sub in (base / folder).iterdir() if sub.is_dir()
    }
    videos = base / "videos"
    if videos.is_dir():
        for path in videos.iterdir():
            if path.is_dir() or path.suffix.lower() in images.VIDEO_SUFFIXES:
                names.add(path.stem)
    return sorted(names)


def _number(path: Path) -> int:
    found = re.findall(r"\d+", path.stem)
    return int(found[-1]) if found else 0


def _in_time(path: Path) -> tuple[int, str]:
    """Return what frames are sorted by; the order of a folder is that of its file system."""
    return _number(path), path.name


def _face(path: Path) -> int:
    found = re.search(r"-face-(\d+)$", path.stem)
    return int(found[1]) if found else 0


def _images(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in image_suffixes()]


def _frames_of(
    base: Path, clip: cexpr_lists.Clip, builder: SplitBuilder, every: int
) -> Iterator[tuple[str, int, images.ImageSource]]:
    """Yield key, number and image of each frame, in the order of time."""
    for name in (*_FRAMES, "videos"):
        folder = next((f for f in (base / name / clip.name, base / name / clip.stem) if f.is_dir()), None)
        if folder is None:
            continue
        nested = sorted((f for f in folder.iterdir() if f.is_dir()), key=_in_time)
        for place, frame in enumerate(nested):
            faces = sorted(_images(frame), key=_face)
            if place % every:
                continue
            if not faces:
                builder.skipped.drop("frame without a face", f"{clip.stem}/{frame.name}")
            for face in faces[:1]:  # the one numbered lowest
                yield (f"{clip.stem}/{frame.name}/face-{_face(face)}", _number(frame), images.ImageFile(face))
            for other in faces[1:]:
                builder.skipped.drop("another face in the frame", f"{clip.stem}/{other.name}")
        for place, path in enumerate(sorted(_images(folder), key=_in_time)):
            if place % every == 0:
                yield f"{clip.stem}/{path.name}", _number(path), images.ImageFile(path)
        return
    video = _video(base, clip)
    if video is None:
        builder.skipped.drop("neither frames nor video", clip.name)
        return
    for number in range(0, images.frame_count(video), every):
        yield f"{clip.stem}/{number}", number, images.VideoFrame(video, number)


def _video(base: Path, clip: cexpr_lists.Clip) -> Path | None:
    for folder in _VIDEOS:
        for name in (clip.name, clip.stem):
            for suffix in sorted(images.VIDEO_SUFFIXES):
                if (path := base / folder / f"{name}{suffix}").is_file():
                    return path
    return None


def _add_clip(
    base: Path,
    clip: cexpr_lists.Clip,
    builder: SplitBuilder,
    every: int,
    fps: float | None,
    segments: list[cexpr_lists.Segment] | None,
) -> None:
    if clip.label == cexpr_lists.OTHER:
        builder.skipped.drop("class Other, never scored", clip.name)
        return
    if segments is not None and fps is None:
        video = _video(base, clip)
        if video is None:
            raise ConfigError(
                f"the labels of {clip.stem} go by time and its frames carry no time; "
                "say how many frames a second has (fps)"
            )
        fps = images.frame_rate(video)
    for key, number, picture in _frames_of(base, clip, builder, every):
        labels: tuple[int, ...] = () if clip.label is None else (clip.label,)
        if segments is not None and fps is not None:
            held = cexpr_lists.labels_at(segments, number / fps)
            if held == {cexpr_lists.OTHER}:
                builder.skipped.drop("class Other, never scored", key)
                continue
            if len(held) != 1:
                builder.skipped.drop("two labels at once" if held else "frame outside the annotation", key)
                continue
            labels = tuple(held)
        if builder.usable(picture, key):
            video = picture.path if isinstance(picture, images.VideoFrame) else None
            moment = Moment(clip.stem, number, video)
            builder.add(Record(key, labels, clip.source, {"video": clip.stem}, moment=moment), picture)


def _load_base(base: Path, fold: int, every: int, fps: float | None, reporter: Reporter) -> dict[str, FileCorpus]:
    lists: dict[str, list[cexpr_lists.Clip]] = {}
    folder = cexpr_lists.fold_folder(base, fold)
    if folder is not None:
        for split in ("train", "val", "test"):
            if (path := folder / f"{split}.txt").is_file():
                lists[split] = cexpr_lists.read_fold(path)
    annotated = base / "annotation"
    timed = not any(clip.label is not None for clips in lists.values() for clip in clips) and any(
        annotated.glob("*.csv")
    )
    challenge = not timed and all(clip.label is None for clips in lists.values() for clip in clips)
    if timed:
        lists = {"all": [cexpr_lists.Clip(name, None) for name in video_names(base)]}
    elif challenge:
        # All lists of the challenge name the same videos.
        lists = {"test": lists.get("test") or [cexpr_lists.Clip(name, None) for name in video_names(base)]}
    same = "test" in lists and lists["test"] == lists.get("val")
    if same:
        del lists["test"]
    corpora = {}
    for split, clips in lists.items():
        builder = SplitBuilder(f"cexpr/{split}", CEXPR)
        if challenge:
            builder.skipped.remark("not labelled: cannot be scored here", base.name)
        else:
            builder.skipped.remark("labelled by a team, not by the organisers", base.name)
        if same and split == "val":
            builder.skipped.remark(_ALSO, base.name)
        for clip in tracked(clips, reporter, f"reading C-EXPR-DB {split}"):
            table = annotated / f"{clip.stem}.csv"
            if timed and not table.is_file():
                builder.skipped.drop("no annotation", clip.stem)
            else:
                _add_clip(base, clip, builder, every, fps, cexpr_lists.read_annotation(table) if timed else None)
        builder.stated["clips"] = len(clips)
        corpora[split] = builder.corpus("extract the frames of its videos", "video")
    return corpora


def load_cexpr(
    root: Path, *, fold: int = 0, every: int = 1, fps: float | None = None, reporter: Reporter = SILENT
) -> dict[str, FileCorpus]:
    """Read C-EXPR-DB: the labelled clips as ``train`` and ``val``, the challenge as ``test``.

    Splits that are absent are left out; labels by time give ``all``. The challenge has no labels. Of several faces in
    a frame the one numbered lowest is taken. ``root`` is laid out as above, or holds ``C-EXPR-DB`` and
    ``C-EXPR-DB-CHALLENGE``; ``fold`` is one of five, ``every`` takes every n-th frame of a video. A `ConfigError` asks
    for ``fps`` (frames per second) where labels go by time, without videos.
    """
    if every < 1:
        raise ConfigError(f"every must be at least 1, not {every}")
    bases = cexpr_bases(root)
    if not bases:
        raise DataError(f"{root} has no videos, cropped_aligned or folds; point at C-EXPR-DB or its challenge")
    corpora: dict[str, FileCorpus] = {}
    for base in bases:
        corpora |= _load_base(base, fold, every, fps, reporter)
    if not corpora:
        raise DataError(f"{root} holds no videos; unpack C-EXPR-DB there")
    return corpora


FORMAT = CorpusFormat(
    "cexpr",
    "C-EXPR-DB: cropped_aligned/VIDEO/frame-N, folds/split-K/train.txt, or C-EXPR-DB/videos",
    tasks=lambda root, named: ("cexpr",) if named or cexpr_bases(root) else (),
    load=lambda root, how: load_cexpr(root, fold=how.fold, every=how.every, reporter=how.reporter),
    annotation=("*folds/*.txt", "*annotation/*.csv"),
)
