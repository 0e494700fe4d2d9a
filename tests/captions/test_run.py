"""Captioning a corpus: each picture once, resumable, and silent about what was said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from carefl_secure.captions.captioner import load_captioner
from carefl_secure.captions.run import caption_all, caption_corpus, open_cache, read_captions
from carefl_secure.errors import DataError
from carefl_secure.progress import SilentReporter

Make = Callable[..., Any]


class Heard:
    """Keeps every word that is reported."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.steps = 0

    def start(self, task: str, total: int) -> None:
        self.words.append(f"{task} {total}")

    def advance(self, task: str, step: int = 1) -> None:
        self.words.append(task)
        self.steps += step

    def finish(self, task: str) -> None:
        self.words.append(task)

    def note(self, text: str) -> None:
        self.words.append(text)

    def round(self, row: Mapping[str, float | int | str]) -> None:
        self.words.append(str(row))


def test_each_picture_is_captioned_once(pictures: Make, parrot: Any, tmp_path: Path) -> None:
    corpus, captioner = pictures(0, 1, 0, 2, 0, 1, 3), parrot()
    cache = open_cache(tmp_path, captioner, "full")
    done = caption_corpus(corpus, captioner, cache, "full", SilentReporter())
    assert (done.records, done.made, done.kept, sum(captioner.calls)) == (7, 4, 3, 4)
    said = read_captions(corpus, cache)
    assert len(set(said)) == 4 and said[0] == said[2] == said[4] and said[1] == said[5]
    again = caption_corpus(corpus, captioner, cache, "full", SilentReporter())
    assert (again.made, again.kept) == (0, 7) and sum(captioner.calls) == 4


def test_a_stopped_pass_goes_on(pictures: Make, parrot: Any, tmp_path: Path) -> None:
    corpus, stopping = pictures(*range(10)), parrot(stop_after=2)
    cache = open_cache(tmp_path, stopping, "full")
    with pytest.raises(KeyboardInterrupt):
        caption_corpus(corpus, stopping, cache, "full", SilentReporter())
    with pytest.raises(DataError, match="4 of 10 records"):
        read_captions(corpus, cache)
    rest = parrot()
    done = caption_corpus(corpus, rest, cache, "full", SilentReporter())
    assert (done.made, done.kept) == (4, 6)
    whole = open_cache(tmp_path / "fresh", rest, "full")
    caption_corpus(corpus, parrot(), whole, "full", SilentReporter())
    assert read_captions(corpus, whole) == read_captions(corpus, cache)


def test_views_and_limits(pictures: Make, parrot: Any, tmp_path: Path) -> None:
    corpus, captioner = pictures(*range(5)), parrot()
    said = {}
    for view in ("full", "box", "crop"):
        cache, done = caption_all({"a": corpus}, captioner, tmp_path, view, SilentReporter())  # type: ignore[arg-type]
        assert done["a"].made == 5
        said[view] = read_captions(corpus, cache)
    assert len({tuple(one) for one in said.values()}) == 3
    cache, done = caption_all({"a": corpus}, captioner, tmp_path / "b", "full", SilentReporter(), 2)
    assert done["a"].records == done["a"].made == 2


def test_nothing_that_was_said_is_reported(
    pictures: Make, parrot: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    heard, corpus = Heard(), pictures(*range(7))
    cache, done = caption_all({"train": corpus}, parrot(), tmp_path, "full", heard)
    assert heard.steps == 7
    cache.put("ff" * 32, "zebra")
    corpus.images.append(pictures(99).images[0])
    corpus.records.append(corpus.records[0])
    with pytest.raises(DataError) as caught:
        read_captions(corpus, cache)
    text = " ".join([*heard.words, caplog.text, str(caught.value), str(done["train"].as_json())])
    assert "captioning 7 records" in text
    assert "zebra" not in text and "lighthouse" not in text
    assert "zebra" in read_captions(pictures(0), cache)[0]


def test_leakage_is_measured_along_the_way(pictures: Make, parrot: Any, tmp_path: Path) -> None:
    class Blunt(parrot):  # type: ignore[misc, valid-type]
        def caption(self, images: list[Any]) -> list[str]:
            return ["a happy person"] * len(images)

    captioner = Blunt()
    cache = open_cache(tmp_path, captioner, "full")
    done = caption_corpus(pictures(*range(7)), captioner, cache, "full", SilentReporter())
    assert done.leakage.stem == 1.0 and done.leakage.own == pytest.approx(1 / 7)


def test_a_cache_without_a_view_is_refused(pictures: Make, parrot: Any, tmp_path: Path) -> None:
    from carefl_secure.captions.cache import CaptionCache

    with pytest.raises(DataError, match="does not state its view"):
        read_captions(pictures(0), CaptionCache(tmp_path, parrot().facts))


@pytest.mark.parametrize("name", ["llava", "smolvlm"])
def test_a_real_model_fills_the_cache(
    request: pytest.FixtureRequest, pictures: Make, tmp_path: Path, name: str
) -> None:
    folder = request.getfixturevalue(name)
    captioner = load_captioner(str(folder), "What?", dtype="float32", max_new_tokens=6, batch=2)
    corpus = pictures(0, 1, 2, 0)
    cache, done = caption_all({"a": corpus}, captioner, tmp_path, "box", SilentReporter())
    assert (done["a"].made, done["a"].kept) == (3, 1)
    said = read_captions(corpus, cache)
    assert said[0] == said[3] and all(said) and len(set(said)) == 3
    # One after the other gives the same words: a caption depends on its own picture.
    single = load_captioner(str(folder), "What?", dtype="float32", max_new_tokens=6, batch=1)
    other = open_cache(tmp_path / "single", single, "box")
    caption_corpus(corpus, single, other, "box", SilentReporter())
    assert read_captions(corpus, other) == said
