"""The command line: captions a folder and the drawn scenes, and shows counts only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from carefl_secure.captions.cache import CaptionCache
from carefl_secure.captions.run import read_captions
from carefl_secure.cli import app
from carefl_secure.data.open_corpus import open_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    for label in ("Happiness", "Neutral"):
        (root / label).mkdir(parents=True)
        for i in range(3):
            rng = np.random.default_rng(i if label == "Neutral" else 10 * i)
            pixels = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


def call(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["caption", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def options(model: Path, cache: Path) -> list[object]:
    quick = ["--max-new-tokens", 5, "--dtype", "float32", "--batch", 2]
    return ["--model", model, "--cache", cache, *quick]


def test_a_folder_is_captioned_and_gone_on_with(folder: Path, llava: Path, tmp_path: Path) -> None:
    given = [folder, *options(llava, tmp_path / "captions"), "--prompt", "scene"]
    code, out, err = call(*given, "--json", "--limit", 2)
    assert code == 0, err
    found = json.loads(out)["splits"]["all"]
    assert (found["records"], found["made"]) == (2, 2) and found["seconds_per_caption"] > 0
    code, out, err = call(*given, "--json")
    found = json.loads(out)
    # The first pictures of both classes are equal, so six records are five pictures.
    assert (found["splits"]["all"]["made"], found["splits"]["all"]["kept"]) == (3, 3)
    assert found["captioner"]["model"] == "llava" and found["captioner"]["view"] == "full"
    corpus = open_corpus(folder)["all"]
    said = [c for c in read_captions(corpus, CaptionCache.find(tmp_path / "captions")) if c]
    code, table, err = call(*given)
    assert code == 0 and "name an emotion" in table and "captioning 6 records" in err
    assert said and not any(one in text for one in said for text in (out, table, err))
    code, out, err = call(*given, "--quiet")
    assert code == 0 and err == ""


def test_drawn_scenes_are_captioned_in_any_view(smolvlm: Path, tmp_path: Path) -> None:
    given = ["synthetic", *options(smolvlm, tmp_path / "c"), "--limit", 3, "--json", "--quiet"]
    for view in ("box", "crop"):
        code, out, err = call(*given, "--view", view, "--set", "data.records=60")
        assert code == 0, err
        splits = json.loads(out)["splits"]
        assert {name: one["records"] for name, one in splits.items()} == {"private": 3, "public": 3, "test": 3}
    assert len(list((tmp_path / "c").iterdir())) == 2


def test_refusals_have_their_codes(folder: Path, llava: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    assert call(folder, *options(llava, cache), "--prompt", "poem")[0] == 2
    assert call(folder, *options(llava, cache), "--set", "data.lables=basic")[0] == 2
    assert call(tmp_path / "nothing", *options(llava, cache))[0] == 10
    code, _, err = call(folder, *options(llava, cache), "--view", "crop")
    assert code == 10 and "view full" in " ".join(err.split())
    assert call(folder, *options(folder, cache))[0] == 12
