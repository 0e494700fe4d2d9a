"""A finished run is used: predictions, the card's own script, a merged checkpoint."""

from __future__ import annotations

import contextlib
import csv
import gc
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCardData
from PIL import ExifTags, Image
from typer.testing import CliRunner

import carefl_secure
from carefl_secure.cli.app import app
from carefl_secure.errors import ConfigError, DataError, ModelError, RunError
from carefl_secure.evaluation.groups import Settings
from carefl_secure.progress import SilentReporter
from carefl_secure.report import write_report
from carefl_secure.runs.evaluation.evaluate import ScoredRun, evaluate
from carefl_secure.runs.saved_model import predict
from carefl_secure.runs.saved_model.predict import score_file
from carefl_secure.runs.saved_model.task import read_task

FEW = Settings(replicates=20, minimum=10)


@pytest.fixture(scope="module")
def trained(train_small: Callable[..., Path]) -> Path:
    """A run with several labels on the embedded base, in 4 bits."""
    return train_small(model__base="embedded", model__quantization="nf4", federation__server_lr=0.3)


@pytest.fixture(scope="module")
def single(train_small: Callable[..., Path]) -> Path:
    """A run with one label each, on a base in a folder."""
    return train_small(data__labels="basic", model__compute_dtype="float32", federation__server_lr=0.3)


@pytest.fixture(scope="module", params=["several", "one"])
def either(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue("trained" if request.param == "several" else "single"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three pictures of the family that the embedded base knows."""
    from carefl_secure.data.synthetic.corpus import synthetic_corpus

    folder = tmp_path_factory.mktemp("images")
    corpus = synthetic_corpus("test", 3, cache=folder / "cache")
    for i in range(3):
        corpus.image(i).save(folder / f"{i}.png")
    return sorted(folder.glob("*.png"))


def predicted(run: Path, images: Sequence[predict.Picture]) -> list[predict.Prediction]:
    model = carefl_secure.load(run)
    return [model.predict(image) for image in images]


def test_predictions_are_the_scores_of_the_evaluation(either: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.jsonl"
    evaluation = evaluate(either, SilentReporter(), settings=FEW, predictions=file).evaluation
    assert file.stat().st_mode & 0o77 == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    test = ScoredRun(either, SilentReporter()).corpora.test
    assert [row["image"] for row in rows] == [record.key for record in test.records]
    found = predicted(either, [test.image(i) for i in range(5)])
    for row, record, one in zip(rows[:5], test.records, found, strict=False):
        assert one.scores == pytest.approx(row["scores"], abs=1e-4)
        assert list(one.labels) == row["labels"] and row["true"] == [test.space.labels[i] for i in record.labels]
        assert list(one.scores.values()) == sorted(one.scores.values(), reverse=True)
    if evaluation.multi:
        cuts = {label.name: label.threshold for label in evaluation.labels}
        assert found[0].thresholds == pytest.approx(cuts, abs=1e-5)
    else:
        assert found[0].thresholds is None and len(found[0].labels) == 1
        assert sum(map(found[0].probability, found[0].scores)) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ConfigError, match="jsonl"):
        evaluate(either, SilentReporter(), predictions=tmp_path / "scores.txt")


def test_a_table_has_a_row_for_each_label(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    with score_file(file) as table:
        table.write("a/1.png", predict.predicted(("x", "y"), np.array([-1.0, 2.0]), {"x": 0.5, "y": math.inf}), ["x"])
    with file.open() as held:
        assert list(csv.reader(held)) == [
            ["image", "label", "score", "threshold", "given", "true"],
            ["a/1.png", "y", "2.0", "", "0", "0"],
            ["a/1.png", "x", "-1.0", "0.5", "0", "1"],
        ]


@pytest.mark.parametrize("name", ["scores.csv", "ledger.jsonl"])
def test_scores_replace_earlier_scores_and_nothing_else(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    for _ in range(2):
        with score_file(file) as table:
            table.write("1.png", predict.predicted(("x", "y"), np.array([-1.0, 2.0]), None))
    file.write_text('{"format": "carefl.ledger/1"}\n')
    with pytest.raises(ConfigError, match="choose another file"), score_file(file):
        pass
    assert "carefl.ledger" in file.read_text()


def script_of(adapter: Path) -> str:
    (script,) = re.findall(r"```python\n(.*?)```", (adapter / "README.md").read_text(), re.DOTALL)
    assert "carefl" not in script.lower()
    return str(script)


@pytest.fixture(scope="module")
def odd(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures that look otherwise than their first bytes: turned, see-through, with a palette, in CMYK, animated."""
    folder, picture = tmp_path_factory.mktemp("odd"), Image.open(images[0])
    turned = picture.getexif()
    turned[ExifTags.Base.Orientation] = 6
    picture.save(folder / "turned.png", exif=turned)
    clear = picture.convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    clear.save(folder / "clear.png")
    picture.quantize(16).save(folder / "palette.png", transparency=3)
    picture.convert("CMYK").save(folder / "cmyk.tif")
    picture.save(folder / "moves.gif", save_all=True, append_images=[picture.rotate(90)])
    return sorted(folder.iterdir())


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
def test_the_script_in_the_card_gives_the_same_scores(
    either: Path, images: list[Path], odd: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [*images, *odd]
    monkeypatch.chdir(either / "adapter")
    monkeypatch.setattr(sys, "argv", ["script", *map(str, images)])
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        exec(script_of(either / "adapter"), {"__name__": "__main__"})
    rows = [json.loads(line) for line in written.getvalue().splitlines()]
    ours = predicted(either, images)
    assert [row["image"] for row in rows] == [str(one) for one in images]
    for row, one in zip(rows, ours, strict=True):
        assert row["scores"] == pytest.approx(one.scores, abs=1e-4)
    assert rows[0]["scores"] != pytest.approx(rows[1]["scores"], abs=1e-3)
    gc.collect()  # a file that the script left open warns now


@pytest.mark.slow
def test_the_script_needs_nothing_of_this_package(trained: Path, images: list[Path], tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(trained / "adapter", tmp_path / "elsewhere"))
    code = script_of(adapter) + '\nassert not [name for name in sys.modules if name.startswith("carefl")]\n'
    done = subprocess.run(
        [sys.executable, "-c", code, *images], cwd=adapter, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row, one in zip(rows, predicted(adapter, images), strict=True):
        assert row["scores"] == pytest.approx(one.scores, abs=1e-4)


def test_the_card_has_what_a_hub_asks_for(single: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(single, tmp_path / single.name))

    def front() -> tuple[dict[str, object], str]:
        text = (run / "adapter" / "README.md").read_text()
        head, _, body = text.removeprefix("---\n").partition("---\n")
        assert head.count("differential_privacy:") == 1
        return yaml.safe_load(head), body

    facts, body = front()
    task = read_task(run / "adapter")
    data = ModelCardData(**facts)  # type: ignore[arg-type]
    assert data.pipeline_tag == "image-text-to-text" and data.license and data.datasets and data.tags
    assert {one.metric_type for one in data.eval_results or ()} == {"mean_average_precision", "f1"}
    privacy = facts["differential_privacy"]
    assert isinstance(privacy, dict) and privacy["unit"] == "record" and privacy["trust"] == "secagg"
    assert privacy["delta"] == 0.001 and 0 < privacy["epsilon"] <= 8
    assert task["prompt"] in body and all(f"`{answer}`" in body for answer in task["answers"])
    write_report(run)  # which checks the ledgers, and puts its own block in the place of ours
    assert front()[0]["differential_privacy"]["verdict"] == "accounted"  # type: ignore[index]


def test_a_merged_checkpoint_scores_as_the_adapter(trained: Path, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    said = predict.export_merged(trained, out)
    found = re.fullmatch(
        r"bfloat16 moves scores by (\S+) on average and (\S+) at most; .* for \d of 8 public images", said
    )
    assert found and 0 < float(found[1]) <= float(found[2])
    assert said in (out / "README.md").read_text()
    pictures = [Image.open(one).convert("RGB") for one in images]
    whole = predict.TrainedModel(trained, quantization="none").scores(pictures)
    merged = carefl_secure.load(out)
    rounding = merged.scores(pictures) - whole
    untuned = ScoredRun(trained, SilentReporter()).scorer(merged.scorer.space)
    plain = untuned.all(predict.encode_images(untuned.adapter.base, pictures))
    # The adapter does something, and the merged copy has it: measured over ten runs, 660 to 22,000 times the rounding.
    assert 0 < np.abs(rounding).max() < np.abs(plain - whole).max()
    assert np.square(plain - whole).mean() > 25 * np.square(rounding).mean()
    with pytest.raises(RunError, match="exists"):
        predict.export_merged(trained, out)


def test_a_merged_checkpoint_in_float32_is_not_rounded(single: Path, images: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "merged"
    done = CliRunner().invoke(app, ["export", str(single), "--merge", "--out", str(out), "--dtype", "float32", "-q"])
    assert done.exit_code == 0 and "float32 moves scores by" in done.stdout
    pictures = [Image.open(one).convert("RGB") for one in images]
    whole = predict.TrainedModel(single, quantization="none").scores(pictures)
    assert np.allclose(carefl_secure.load(out).scores(pictures), whole, atol=1e-3)


def test_another_base_or_a_damaged_task_is_refused(single: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(single / "adapter", tmp_path / "adapter"))
    path = adapter / "task.json"
    task = json.loads(path.read_text())
    assert len(task.pop("sha256")) == 64  # without it, as an older version wrote the file
    path.write_text(json.dumps({**task, "base_sha256": "00" * 32}))
    with pytest.raises(ModelError, match="SHA-256"):
        carefl_secure.load(adapter)
    path.write_text(json.dumps({**task, "format": "carefl.task/2"}))
    with pytest.raises(ModelError, match="format"):
        carefl_secure.load(adapter)
    path.write_text(json.dumps({**task, "settings": {**task["settings"], "adapter": {"rank": -1}}}))
    with pytest.raises(ModelError, match="rank"):
        carefl_secure.load(adapter)
    path.write_text(json.dumps({**task, "thresholds": [0.5]}))
    with pytest.raises(ModelError, match="threshold"):
        carefl_secure.load(adapter)
    path.unlink()
    with pytest.raises(ModelError, match=r"task\.json"):
        carefl_secure.load(adapter)


def test_a_label_head_of_other_labels_is_refused(single: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(single / "adapter", tmp_path / "adapter"))
    path = adapter / "label_head.json"
    other = json.loads(path.read_text().replace("Happiness", "Happyness"))
    path.write_text(json.dumps(other))
    with pytest.raises(ModelError, match="changed after it was written"):
        carefl_secure.load(adapter)
    del other["sha256"]
    path.write_text(json.dumps(other))
    with pytest.raises(ModelError, match="lacks a label"):
        carefl_secure.load(adapter)


@pytest.mark.parametrize(("name", "entry"), [("task.json", "thresholds"), ("label_head.json", "constant")])
def test_an_edit_that_would_change_scores_or_labels_is_refused(
    trained: Path, images: list[Path], tmp_path: Path, name: str, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = Path(shutil.copytree(trained / "adapter", tmp_path / "adapter"))
    path = adapter / name
    about = json.loads(path.read_text())
    about[entry] = 0.4 if entry == "constant" else [0.25, *about[entry][1:]]
    path.write_text(json.dumps(about))
    with pytest.raises(ModelError, match=rf"{name}.*changed after it was written"):
        carefl_secure.load(adapter)
    monkeypatch.chdir(adapter)
    monkeypatch.setattr(sys, "argv", ["script", str(images[0])])
    with pytest.raises(SystemExit, match=rf"{name} was changed"):
        exec(script_of(adapter), {"__name__": "__main__"})


def test_a_base_that_moved_is_named_in_the_task_by_hand(single: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(single / "adapter", tmp_path / "adapter"))
    task = json.loads((adapter / "task.json").read_text())
    (adapter / "task.json").write_text(json.dumps({**task, "base": "/elsewhere"}))
    assert read_task(adapter)["base"] == "/elsewhere"


def test_what_is_left_out_of_a_folder_is_said(images: list[Path], tmp_path: Path) -> None:
    folder, other = tmp_path / "given", tmp_path / "linked"
    other.mkdir()
    folder.mkdir()
    for name in ("a.png", "no-suffix"):
        shutil.copy(images[0], folder / name)
    shutil.copy(images[0], other / "b.png")
    (folder / "link").symlink_to(other)
    for name in ("photo.heic", "raw.cr2", "notes.txt", "all.zip", ".hidden.png"):
        (folder / name).write_bytes(b"x")
    said: list[str] = []
    found = predict.image_files([folder], said.append)
    assert [one.relative_to(folder).as_posix() for one in found] == ["a.png", "link/b.png", "photo.heic", "raw.cr2"]
    text = " ".join(said)
    assert all(name in text for name in ("no-suffix", "notes.txt", "all.zip", ".hidden.png"))
    (folder / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(DataError, match=r"gone\.png is a link to nowhere\.png"):
        predict.image_files([folder])


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("photo.heic", b"x", "pip install pillow-heif"),
        ("photo.jpg", b"\0\0\0\x18ftypheic\0\0\0\0", "pip install pillow-heif"),
        ("raw.cr2", b"x", "magick"),
        ("a\udcff.png", b"", "not UTF-8"),
    ],
)
def test_an_unreadable_image_says_what_to_do(
    single: Path, name: str, content: bytes, part: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    done = CliRunner().invoke(app, ["predict", str(single), str(path), "--csv", str(tmp_path / "x.csv")])
    assert done.exit_code == DataError.exit_code and part in done.stderr.replace("\n", " ")


def test_images_are_read_a_batch_at_a_time(single: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    decode = predict.decode
    monkeypatch.setattr(predict, "decode", lambda path: (read.append(path), decode(path))[1])
    answers = predict.TrainedModel(single, batch=2).stream(images * 3)
    next(answers)
    assert len(read) == 2
    assert len(list(answers)) == 8 and len(read) == 9


def test_the_command_names_and_counts_what_it_cannot_read(single: Path, images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "given"
    (folder / "inside").mkdir(parents=True)
    shutil.copy(images[0], folder / "inside" / "a.png")
    (folder / "b.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not an image, and not asked for")
    (folder / ".hidden.png").write_bytes(b"")
    words = ["predict", str(single / "adapter"), str(folder), str(images[1]), "-q"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == DataError.exit_code and "1 of 3" in done.stderr and "b.jpg" in done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "1.png"]
    table = tmp_path / "found.csv"
    done = CliRunner().invoke(app, ["predict", str(single), *map(str, images), "--csv", str(table)])
    assert done.exit_code == 0 and "labelling 3 images" in done.stderr and not done.stdout
    assert sum(line.endswith(",1,") for line in table.read_text().splitlines()) == 3
    done = CliRunner().invoke(app, ["predict", str(single), str(images[2]), "-q"])
    assert done.exit_code == 0 and re.fullmatch(r"\S+2\.png: \w+ \(\d\.\d\d\)\n", done.stdout)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["predict", "nosuch", "x.png"], RunError.exit_code),
        (["predict", "RUN", "nosuch.png"], DataError.exit_code),
        (["predict", "RUN", "x.png", "--csv", "x.json"], ConfigError.exit_code),
        (["export", "RUN"], ConfigError.exit_code),
    ],
)
def test_wrong_words_are_refused(single: Path, words: list[str], code: int) -> None:
    done = CliRunner().invoke(app, [str(single) if word == "RUN" else word for word in words])
    assert done.exit_code == code and done.stderr.startswith("error:")
