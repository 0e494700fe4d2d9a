"""C-EXPR-DB without training on it: the mask, the fusion, the figures, the predictions file."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from PIL import Image
from sklearn.metrics import accuracy_score, f1_score, recall_score
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.config import load_config
from carefl_secure.data.corpora.cexpr import load_cexpr
from carefl_secure.data.records import CEXPR, COMPOUND, Record, Skipped
from carefl_secure.errors import ConfigError, DataError
from carefl_secure.evaluation.groups import Settings
from carefl_secure.model.saved import load_saved
from carefl_secure.model.vision.encode import vision_features
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.build import label_scorer
from carefl_secure.runs.evaluation.evaluate import evaluate
from carefl_secure.runs.evaluation.zero_shot import Part, _remarks, evaluate_zero_shot, predictions_table
from carefl_secure.runs.staged_corpora import load_corpora

FEW = Settings(replicates=20, minimum=10)
# The published map from RAF-DB's ids, written out: 8->0, 1->1, 5->2, 11->3, 9->4, 3->5, 4->6.
RAF = (8, 1, 5, 11, 9, 3, 4)
CLIPS = [
    *((f"{10 + k}_{label.replace(' ', '-')}_0", k) for k, label in enumerate(CEXPR.labels)),
    ("10_Fearfully-Surprised_1", 0),
    ("11_Happily-Surprised_1", 1),
]


@pytest.fixture(scope="module")
def trained(train_small: Callable[..., Path]) -> Path:
    return train_small(data__records=200, data__labels="compound", data__view="aligned")


def frames(base: Path, clip: str, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for n in range(count):
        path = base / "cropped_aligned" / clip / f"frame-{n}" / f"v-{clip}-f-{n}-face-0.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((40, 40), Image.Resampling.NEAREST).save(path)


def clips(root: Path) -> Path:
    """Make the labelled part: nine clips of seven videos, and one that is never scored."""
    base = root / "C-EXPR-DB"
    lines = []
    for k, (clip, label) in enumerate(CLIPS):
        frames(base, clip, 1 + k % 3, k)
        lines.append(f"{CEXPR.labels[label].replace(' ', '-')}/{clip},{label},Well, yes")
    frames(base, "33_Other_0", 2, 99)
    lines.append("Other/33_Other_0,7,and, so on")
    folder = base / "folds" / "split-0"
    folder.mkdir(parents=True)
    (folder / "val.txt").write_text("\n".join(lines) + "\n")
    (folder / "train.txt").write_text(lines[0] + "\n")
    return root


def challenge(root: Path) -> Path:
    for video, count in (("01", 3), ("02", 1)):
        frames(root / "C-EXPR-DB-CHALLENGE", video, count, int(video) + 50)
    return root


@pytest.mark.parametrize("unit", ["frames", "clips"])
def test_what_is_fused_is_named(unit: str) -> None:
    corpus: Any = SimpleNamespace(records=[Record("a", (), None, {"video": "1"})] * 2, skipped=Skipped())
    part = Part("val", corpus, ["1", "1"])
    said = " ".join(_remarks(part, COMPOUND, "mean_probability", unit, own=False))
    assert f"its {unit}, 2 over all videos" in said and f"the middle {unit[:-1]}" in said
    assert predictions_table([(part, np.ones((1, 7)))], unit).startswith(f"part,video,{unit},truth")


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "evaluation" / "predictions-cexpr.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def by_hand(run: Path, data: Path, part: str) -> dict[str, np.ndarray]:
    """Average the seven renormalised probabilities over the frames of each video."""
    config = load_config(run / "config.yaml", ())
    corpus = load_cexpr(data)[part]
    scorer = label_scorer(config, COMPOUND)
    load_saved(scorer.adapter, run / "adapter")
    seen = vision_features(scorer.adapter.base, corpus, SilentReporter())
    eleven = np.exp(scorer.all(seen, 16).astype(np.float64))
    seven = eleven[:, [k - 1 for k in RAF]]
    seven /= seven.sum(1, keepdims=True)
    videos = np.array([record.attributes["video"] for record in corpus.records])
    return {video: seven[videos == video].mean(0) for video in np.unique(videos)}


def test_labelled_and_unlabelled_videos(run: Path, tmp_path: Path) -> None:
    data = challenge(clips(tmp_path / "data"))
    done = evaluate_zero_shot(run, SilentReporter(), data=data, settings=FEW)
    found = done.evaluation
    assert found is not None
    assert done.file == run / "evaluation" / "evaluation-cexpr.json"
    assert json.loads(done.file.read_text()) == found.to_json()
    assert (found.records, found.space, found.split) == (len(CLIPS), "cexpr", "val split")
    # Two clips of video 10 and two of video 11 are drawn together.
    assert (found.sampling.unit, found.sampling.units) == ("subject", 7)
    written = rows(run)
    scored = [row for row in written if row["part"] == "val"]
    blank = [row for row in written if row["part"] == "test"]
    assert [row["video"] for row in blank] == ["01", "02"]
    assert [row["frames"] for row in blank] == ["3", "1"]
    assert all(row["truth"] == "" for row in blank)
    assert done.unlabelled == 2
    for part, some in (("val", scored), ("test", blank)):
        expected = by_hand(run, data, part)
        assert sorted(expected) == [row["video"] for row in some]
        for row in some:
            values = [float(row[label]) for label in CEXPR.labels]
            np.testing.assert_allclose(values, expected[row["video"]], atol=2e-5)
            assert row["class_id"] == str(int(np.argmax(expected[row["video"]])))
            assert row["class"] == CEXPR.labels[int(row["class_id"])]
    assert {row["video"]: row["truth"] for row in scored} == {clip: CEXPR.labels[label] for clip, label in CLIPS}
    truth, stated = [r["truth"] for r in scored], [r["class"] for r in scored]
    labels = list(CEXPR.labels)
    macro = f1_score(truth, stated, labels=labels, average="macro", zero_division=0)
    recall = recall_score(truth, stated, labels=labels, average="macro", zero_division=0)
    assert found.figures["macro_f1"] == pytest.approx(macro)
    assert found.figures["uar"] == pytest.approx(recall)
    assert found.figures["accuracy"] == pytest.approx(accuracy_score(truth, stated))
    assert np.isfinite(found.intervals["macro_f1"].low)
    text = " ".join(found.remarks)
    for said in ("zero-shot", "mean_probability", "by a team", "no result of the challenge"):
        assert said in text
    assert "33_Other_0" not in json.dumps(written)


def test_the_challenge_alone_gets_predictions_and_no_figures(run: Path, tmp_path: Path) -> None:
    data = challenge(tmp_path / "data")
    done = evaluate_zero_shot(run, SilentReporter(), data=data, rule="majority", settings=FEW)
    assert (done.evaluation, done.file, done.unlabelled) == (None, None, 2)
    assert not (run / "evaluation" / "evaluation-cexpr.json").exists()
    assert len(rows(run)) == 2
    every = evaluate_zero_shot(run, SilentReporter(), data=data, every=2, settings=FEW)
    assert every.unlabelled == 2
    assert [row["frames"] for row in rows(run)] == ["2", "1"]


def test_videos_that_no_one_cut_into_frames(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for imageio: each video is a stack of pictures in NumPy's format."""
    v3 = ModuleType("imageio.v3")

    def read(path: Path) -> Any:
        with path.open("rb") as file:
            return np.load(file)

    vars(v3).update(
        improps=lambda path, plugin: read(path),
        imread=lambda path, plugin, index: read(path)[index],
        immeta=lambda path, plugin: {"fps": 2.0},
    )
    fake = ModuleType("imageio")
    fake.v3 = v3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "imageio", fake)
    monkeypatch.setitem(sys.modules, "imageio.v3", v3)
    real = importlib.util.find_spec

    def find(name: str, *rest: Any) -> Any:
        return True if name in ("av", "imageio") else real(name)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    data = tmp_path / "data"
    folder = data / "C-EXPR-DB-CHALLENGE" / "videos"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for video, count in (("01", 3), ("02", 2)):
        with (folder / f"{video}.mp4").open("wb") as file:
            np.save(file, rng.integers(0, 256, (count, 20, 24, 3), np.uint8))
    evaluate_zero_shot(run, SilentReporter(), data=data, settings=FEW)
    expected = by_hand(run, data, "test")
    assert [(row["video"], row["frames"]) for row in rows(run)] == [("01", "3"), ("02", "2")]
    for row in rows(run):
        values = [float(row[label]) for label in CEXPR.labels]
        np.testing.assert_allclose(values, expected[row["video"]], atol=2e-5)


def test_the_seven_shared_classes_of_the_own_test_split(run: Path) -> None:
    done = evaluate_zero_shot(run, SilentReporter(), settings=FEW)
    found = done.evaluation
    assert found is not None
    assert done.predictions is None
    assert done.file == run / "evaluation" / "evaluation-test-cexpr.json"
    test = load_corpora(load_config(run / "config.yaml", ()), SilentReporter()).test
    assert test.name == "synthetic/test-aligned"
    kept = [i for i, r in enumerate(test.records) if r.labels[0] + 1 in RAF]
    assert found.records == len(kept) < len(test.records)
    assert found.space == "cexpr"
    config = load_config(run / "config.yaml", ())
    scorer = label_scorer(config, COMPOUND)
    load_saved(scorer.adapter, run / "adapter")
    eleven = scorer.all(vision_features(scorer.adapter.base, test, SilentReporter()), 16)
    stated = eleven[kept][:, [k - 1 for k in RAF]].argmax(1)
    truth = np.array([RAF.index(test.records[i].labels[0] + 1) for i in kept])
    assert found.figures["accuracy"] == pytest.approx((stated == truth).mean())
    assert found.confusion is not None
    assert np.array(found.confusion).sum(1).tolist() == np.bincount(truth, minlength=7).tolist()
    assert any("four other classes are left out" in remark for remark in found.remarks)


@pytest.mark.parametrize("labels", ["basic", "emotic"])
def test_a_run_on_other_labels_is_refused(run: Path, tmp_path: Path, labels: str) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["labels"] = labels
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    data = challenge(tmp_path / "data")
    for source in (data, None):
        with pytest.raises(ConfigError, match=f"labels {labels}, .*trained on compound"):
            evaluate_zero_shot(run, SilentReporter(), data=source, settings=FEW)
    assert command(run, "--data", data).exit_code == ConfigError.exit_code
    assert not (run / "evaluation").exists()


def test_what_is_no_cexpr_or_cannot_be_scored(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "happy"
    other.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(other / "1.png")
    with pytest.raises(ConfigError, match="not laid out as C-EXPR-DB"):
        evaluate_zero_shot(run, SilentReporter(), data=other.parent, settings=FEW)
    data = clips(tmp_path / "data")
    (data / "C-EXPR-DB" / "folds" / "split-0" / "val.txt").unlink()
    with pytest.raises(DataError, match="training videos only"):
        evaluate_zero_shot(run, SilentReporter(), data=data, settings=FEW)
    # Frames are no videos: the plain evaluation does not score them as if they were.
    with pytest.raises(ConfigError, match="by videos and not by frames"):
        evaluate(run, SilentReporter(), data=data, settings=FEW)


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words), "--bootstrap", "10", "--quiet"])


def test_the_command(run: Path, tmp_path: Path) -> None:
    data = challenge(clips(tmp_path / "data"))
    shown = command(run, "--data", data, "--fuse", "mean_logit", "--every", "2")
    assert shown.exit_code == 0, shown.output
    for text in ("macro f1", "uar", "fused by mean_logit", "predictions-cexpr.csv", "specific to this package; the"):
        assert text in shown.stdout, text
    plain = json.loads(command(run, "--space", "cexpr", "--json").stdout)
    assert (plain["format"], plain["space"]) == ("carefl.evaluation/1", "cexpr")
    shutil.rmtree(data / "C-EXPR-DB")
    stated = json.loads(command(run, "--data", data, "--json").stdout)
    assert stated["format"] == "carefl.predictions/1"
    assert (stated["videos"], stated["file"]) == (2, "predictions-cexpr.csv")
    for wrong in (
        ("--data", data, "--split", "public"),
        ("--data", data, "--labels", "compound"),
        ("--every", "2"),
        ("--scorer", "generation", "--space", "cexpr"),
    ):
        assert command(run, *wrong).exit_code == ConfigError.exit_code, wrong
