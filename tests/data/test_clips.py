"""Frames of one clip and one class are one record; a corpus that names no clips is refused."""

from __future__ import annotations

from typing import Any

import pytest

from carefl_secure.data.clips import as_clips, frames_of, most_frames
from carefl_secure.data.corpora.caers import load_caers
from carefl_secure.data.corpora.cexpr import load_cexpr
from carefl_secure.data.deduplication.image_hashes import hash_images
from carefl_secure.data.splits import Subset, groups
from carefl_secure.errors import ConfigError


def labelled(make: Any) -> Any:
    for clip, count in (("24_Sadly-Fearful_0", 5), ("24_Sadly-Fearful_1", 2), ("04_Happily-Surprised_2", 1)):
        make.frames("C-EXPR-DB", clip, count)
    make.folds(
        "C-EXPR-DB",
        train=[
            "Sadly-Fearful/24_Sadly-Fearful_0,5,No.",
            "Sadly-Fearful/24_Sadly-Fearful_1,5,",
            "Happily-Surprised/04_Happily-Surprised_2,1,",
        ],
    )
    return load_cexpr(make.root)["train"]


def test_a_clip_is_one_record_and_clips_of_one_video_stay_together(make: Any) -> None:
    frames = labelled(make)
    clips, marks = as_clips(frames, 3, hash_images(frames))
    assert [clip.frames for clip in clips.clips] == [(7,), (0, 2, 4), (5, 6)]
    assert [record.labels for record in clips.records] == [(1,), (5,), (5,)]
    assert [record.subject for record in clips.records] == ["04", "24", "24"]
    assert groups(clips) == [[0], [1, 2]] or groups(clips) == [[1, 2], [0]]
    # of every frame that is used, and no other, a hash is left, by clip
    assert sorted(mark.records for mark in marks) == [(0,), (1,), (1,), (1,), (2,), (2,)]


def test_frames_are_found_through_parts_of_a_corpus(make: Any) -> None:
    frames = labelled(make)
    clips, _ = as_clips(frames, 3)
    part = Subset(Subset(clips, (2, 1)), (1,))
    images, seconds = frames_of(part, 0)
    assert [image.tobytes() for image in images] == [frames.image(i).tobytes() for i in (0, 2, 4)]
    assert seconds == (0, 0, 0) and most_frames(part) == 3  # four frames of 24 in a second
    assert part.image(0).tobytes() == frames.image(2).tobytes()
    (image,), none = frames_of(Subset(frames, (5,)), 0)
    assert none is None and image.tobytes() == frames.image(5).tobytes() and most_frames(frames) == 0


def test_caer_has_clips_where_a_table_names_them(make: Any) -> None:
    make.caers(each=2)
    frames = load_caers(make.root)["train"]
    with pytest.raises(ConfigError, match=r"name no clip.*clips\.csv"):
        as_clips(frames, 2)
    make.text(make.root / "clips.csv", "path,clip", *(f"{r.key},show-{r.labels[0]}" for r in frames.records))
    clips, _ = as_clips(load_caers(make.root)["train"], 2)
    assert len(clips.records) == len(frames.records) // 2
    assert all(len(clip.frames) == 2 and clip.record.box is None for clip in clips.clips)
