"""Scoring a finished run: what is read, what is written, and what is refused."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.config import Config, load_config
from carefl_secure.data.records import Corpus
from carefl_secure.errors import ConfigError, DataError, ModelError, RunError
from carefl_secure.evaluation.groups import Settings
from carefl_secure.progress import Reporter, SilentReporter
from carefl_secure.report import write_evaluation_page, write_report
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.evaluation import evaluate as module
from carefl_secure.runs.evaluation.evaluate import evaluate
from carefl_secure.runs.staged_corpora import load_corpora

FEW = Settings(replicates=20, minimum=10)


@pytest.fixture(scope="module")
def trained(train_small: Callable[..., Path]) -> Path:
    return train_small()


def test_the_figures_are_those_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unopened:
        """The private corpus: its records are known by number, its pictures never read."""

        def __init__(self, corpus: object) -> None:
            self.records = getattr(corpus, "records", ())
            self.space = getattr(corpus, "space", None)
            self.name = "private"

        def image(self, index: int) -> Image.Image:
            raise AssertionError(f"picture {index} of a private record was opened")

    def loaded(config: Config, reporter: Reporter) -> Corpora:
        corpora = load_corpora(config, reporter)
        return replace(corpora, private=Unopened(corpora.private))

    monkeypatch.setattr(module, "load_corpora", loaded)
    done = evaluate(run, SilentReporter(), settings=FEW)
    found = done.evaluation
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found.figures["mAP"] == pytest.approx(last["mAP"], abs=1e-6)
    assert found.figures["macro_f1"] == pytest.approx(last["macro_f1"], abs=1e-6)
    assert found.untuned["mAP"] != found.figures["mAP"]
    assert found.remarks == ()
    assert done.file == run / "evaluation" / "evaluation.json"
    assert json.loads(done.file.read_text()) == found.to_json()
    assert str(run.parent) not in done.file.read_text()
    cost = found.cost
    assert cost is not None
    assert cost.images == 32
    assert 0 < cost.latency_p50_ms <= cost.latency_p95_ms
    assert cost.peak_memory_bytes > 50_000_000
    assert cost.prompt_tokens > cost.image_tokens > 0
    assert cost.answer_tokens >= 27  # 26 labels and None


def _thumbnails(corpus: Corpus) -> set[str]:
    """Return what every picture of a corpus would look like in an evaluation."""
    found = set()
    for i in range(len(corpus.records)):
        picture, file = corpus.image(i).copy(), io.BytesIO()
        picture.thumbnail((128, 128))
        picture.save(file, "JPEG", quality=85)
        found.add("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
    return found


def test_examples_are_pictures_of_the_public_split_and_of_no_other(run: Path) -> None:
    corpora = load_corpora(load_config(run / "config.yaml"), SilentReporter())
    public, others = _thumbnails(corpora.public), _thumbnails(corpora.test) | _thumbnails(corpora.private)
    for split in ("test", "public"):
        done = evaluate(run, SilentReporter(), split=split, settings=FEW)
        examples = done.evaluation.examples
        assert len(examples) == 8
        shown = {one.picture for one in examples}
        assert shown <= public and not shown & others
        labels = {record.labels for record in corpora.public.records}
        for one in examples:
            assert tuple(corpora.public.space.index(name) for name in one.truth) in labels
            assert all(0 <= chance <= 1 for chance in one.given.values())
        page = write_evaluation_page(done.file).read_text()
        assert page.count('<img src="data:image/jpeg;base64,') == 8
        assert all(one.picture in page for one in examples)
    # Nor does the report of the run show a picture of anybody.
    assert "data:image/jpeg" not in (write_report(run)[1][0]).read_text()


def test_another_corpus_lends_no_example(run: Path, tmp_path: Path) -> None:
    other = folder_of(tmp_path / "other", ["happy", "sad"], ("train", "test"))
    assert evaluate(run, SilentReporter(), data=other, settings=FEW).evaluation.examples == ()


def test_the_public_split_has_its_own_file_and_says_what_it_is(run: Path) -> None:
    done = evaluate(run, SilentReporter(), split="public", settings=FEW)
    assert done.file.name == "evaluation-public.json"
    assert "F1 is too good" in done.evaluation.remarks[0]


def test_a_changed_adapter_is_noticed(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[-1]["mAP"] += 0.01
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    remarks = evaluate(run, SilentReporter(), settings=FEW).evaluation.remarks
    assert "the run itself measured" in remarks[0]


def folder_of(root: Path, labels: list[str], parts: tuple[str, ...] = ("",)) -> Path:
    rng = np.random.default_rng(0)
    for part in parts:
        for label in labels:
            for i in range(4):
                path = root / part / label / f"{label}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return root


def test_another_corpus_brings_its_own_labels(run: Path, tmp_path: Path) -> None:
    other = folder_of(tmp_path / "other", ["happy", "sad"], ("train", "test"))
    done = evaluate(run, SilentReporter(), data=other, settings=FEW)
    found = done.evaluation
    assert done.file.name == "evaluation-data.json"
    assert (found.records, found.split, found.multi) == (8, "test split", False)
    assert found.decided_by == "the label with the highest score"
    assert found.confusion is not None
    assert sum(map(sum, found.confusion)) == 8
    assert any("scored records themselves" in remark for remark in found.remarks)


def test_private_records_are_never_scored(run: Path, tmp_path: Path) -> None:
    own = folder_of(tmp_path / "own", ["happy", "sad"])
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {"source": str(own), "records": None}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for path in (own, own / "happy", own.parent, own / ".." / "own"):
        with pytest.raises(ConfigError, match="private"):
            evaluate(run, SilentReporter(), data=path, settings=FEW)


def test_what_cannot_be_scored_is_refused(run: Path, tmp_path: Path) -> None:
    silent = SilentReporter()
    with pytest.raises(RunError, match="not a run folder"):
        evaluate(tmp_path, silent)
    with pytest.raises(ConfigError, match="--labels"):
        evaluate(run, silent, labels="basic")
    with pytest.raises(ConfigError, match="leave out --data"):
        evaluate(run, silent, data=tmp_path, split="public")
    with pytest.raises(ConfigError, match="age_group"):
        evaluate(run, silent, settings=replace(FEW, groups=("hair",)))
    untested = folder_of(tmp_path / "untested", ["happy", "sad"], ("train",))
    with pytest.raises(DataError, match="training records only"):
        evaluate(run, silent, data=untested, settings=FEW)
    shutil.rmtree(run / "adapter")
    with pytest.raises(ModelError, match="no adapter"):
        evaluate(run, silent, settings=FEW)
    assert not (run / "evaluation").exists()


def command(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words), "--bootstrap", "10", "--quiet"])


def test_the_command(run: Path) -> None:
    shown = command(run, "--group", "age_group", "--min-group", "10")
    assert shown.exit_code == 0, shown.output
    for text in ("mAP 11point", "tuned", "age group", "brightness", "p95", "evaluation.json"):
        assert text in shown.stdout, text
    assert "…" not in shown.stdout
    assert "skin" not in shown.stdout
    stated = command(run, "--json", "--group", "skin_tone")
    plain = json.loads(stated.stdout)
    assert plain["format"] == "carefl.evaluation/1"
    assert "too small" not in stated.stdout
    assert any(group["small"] for group in plain["groups"][0]["groups"])
    assert command(run, "--split", "private").exit_code == 2
    assert command(run / "nowhere").exit_code == RunError.exit_code
