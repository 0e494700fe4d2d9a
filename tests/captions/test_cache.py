"""Captions by the bytes of the picture, for the owner's eyes only, whole or not at all."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from carefl_secure.captions.cache import CaptionCache, picture_key
from carefl_secure.errors import ConfigError, DataError

FACTS = {"model": "m", "revision": "r", "prompt": "p", "view": "full", "max_new_tokens": 8}


def test_the_key_is_the_picture_and_nothing_else() -> None:
    wide, tall = Image.new("RGB", (4, 2)), Image.new("RGB", (2, 4))
    assert picture_key(wide) != picture_key(tall)  # the same bytes in another shape
    assert picture_key(wide) == picture_key(Image.new("L", (4, 2)))
    assert picture_key(wide) != picture_key(Image.new("RGB", (4, 2), (0, 0, 1)))


def test_what_is_put_is_got_again_by_a_second_opener(tmp_path: Path) -> None:
    cache, key = CaptionCache(tmp_path / "captions", FACTS), "ab" * 32
    assert cache.get(key) is None
    cache.put(key, "a person at a \N{SNOWMAN}")
    again = CaptionCache.find(tmp_path / "captions")
    assert again.get(key) == "a person at a \N{SNOWMAN}"
    assert again.facts == FACTS and again.folder == cache.folder
    assert CaptionCache.find(cache.folder).get(key) == again.get(key)
    assert not list(cache.folder.rglob("*.part"))


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    cache = CaptionCache(tmp_path / "captions", FACTS)
    cache.put("cd" * 32, "x")
    for path in [tmp_path / "captions", *(tmp_path / "captions").rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert (cache.folder / ".gitignore").read_text() == "*\n"


@pytest.mark.parametrize("name", FACTS)
def test_another_captioner_has_another_folder(tmp_path: Path, name: str) -> None:
    cache = CaptionCache(tmp_path, FACTS)
    cache.put("ab" * 32, "x")
    other = CaptionCache(tmp_path, FACTS | {name: "else"})
    assert other.folder != cache.folder and other.get("ab" * 32) is None
    with pytest.raises(ConfigError, match="2 captioners"):
        CaptionCache.find(tmp_path)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"caption": 3}', '{"c": "x"}', "\x00"])
def test_a_damaged_caption_is_none(tmp_path: Path, damage: str) -> None:
    cache = CaptionCache(tmp_path, FACTS)
    cache.put("ab" * 32, "x")
    (path,) = cache.folder.glob("ab/*.json")
    path.write_text(damage)
    assert cache.get("ab" * 32) is None


def test_captions_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    cache = CaptionCache(tmp_path, FACTS)
    record = cache.folder / "captioner.json"
    record.write_text(json.dumps(FACTS | {"model": "another"}))
    with pytest.raises(DataError, match="not known who made"):
        CaptionCache.find(tmp_path)
    record.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        CaptionCache.find(cache.folder)
    for nothing in (tmp_path / "empty", tmp_path / "absent"):
        if nothing.name == "empty":
            nothing.mkdir()
        with pytest.raises(DataError, match="carefl-secure caption"):
            CaptionCache.find(nothing)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="may write to"):
        CaptionCache(tmp_path / "file" / "captions", FACTS)


def test_a_stop_while_writing_leaves_the_old_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = CaptionCache(tmp_path, FACTS)
    cache.put("ab" * 32, "old")
    from carefl_secure.captions import cache as module

    def stopped(*paths: Any) -> Callable[..., None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        cache.put("ab" * 32, "new")
    assert cache.get("ab" * 32) == "old"
