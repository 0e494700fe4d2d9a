"""Whole runs on real models: what comes out, what the server saw, and every way to be refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from carefl_secure.cli import app
from carefl_secure.config import Config, load_config
from carefl_secure.errors import AdapterUnmovedError
from carefl_secure.model.label_scorer import RecordLosses
from carefl_secure.privacy import Ledger
from carefl_secure.progress import SilentReporter
from carefl_secure.runs.train import train

LONDON = Path(__file__).parents[3] / "shared" / "data" / "london-faces"


@pytest.fixture
def settings(base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.getbasetemp() / "corpora"
    return [
        f"model.base={base}",
        f"data.cache_dir={cache}",
        f"run.dir={tmp_path / 'runs'}",
        "data.records=160",
        "federation.rounds=2",
        "privacy.delta=0.001",
        "adapter.rank=2",
    ]


@pytest.fixture
def few(settings: list[str]) -> list[str]:
    """Return settings for what needs neither baselines nor a client that vanishes."""
    return [*settings, "federation.clients=4", "simulation.dropout=0", "evaluation.baselines=false"]


def make(settings: list[str], *more: str) -> Config:
    chosen = {key.split("=")[0]: key for key in [*settings, *more]}
    return load_config(None, list(chosen.values()))


def test_a_private_run_leaves_all_its_papers(settings: list[str]) -> None:
    summary = train(make(settings), SilentReporter())
    assert len(summary.rows) == 2
    for row in summary.rows:
        assert {"round", "epsilon", "survivors", "bytes_up", "bytes_down", "seconds"} <= set(row)
        assert row["survivors"] == 7  # one client in ten vanishes; the sum goes on
    assert 0 < float(summary.rows[0]["epsilon"]) < float(summary.rows[1]["epsilon"]) <= 8
    assert set(summary.before) == set(summary.after) == {"mAP", "macro_f1"}
    features = {"feature_logistic", "feature_logistic_dp"}
    assert set(summary.baselines) == {"constant", "colour_histogram", "pixel_probe"} | features
    for word in ("one record", "add-or-remove-one", "reasonable, not strong", "1 colluding client"):
        assert word in summary.promise
    folder = summary.folder
    assert yaml.safe_load((folder / "config.yaml").read_text())["privacy"]["epsilon"] == 8.0
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    spends = 0
    for i in range(8):
        ledger = Ledger(folder / "clients" / str(i) / "ledger.jsonl")
        ledger.verify()
        spends += len(ledger.events())
    assert spends == 2 * 7  # who vanished before it computed anything spent nothing


def test_without_privacy_every_output_says_so(few: list[str]) -> None:
    summary = train(make(few, "privacy.unit=none"), SilentReporter())
    assert summary.promise.startswith("Nothing is protected")
    assert all(row["epsilon"] == "none" for row in summary.rows)
    before = [float(v) for v in summary.before.values()]
    assert before != [float(v) for v in summary.after.values()]


@pytest.mark.parametrize(
    "more",
    [
        ["adapter.train=both"],
        ["adapter.train=alternate"],
        ["model.quantization=none", "federation.aggregator=fedavg"],
        ["model.quantization=int8", "privacy.unit=none"],
        ["privacy.clipping=opacus"],
        ["data.labels=basic", "data.partition=dirichlet"],
        ["data.labels=compound", "data.partition=column", "data.column=skin_tone"],
    ],
    ids=lambda more: " ".join(more),
)
def test_every_choice_runs(few: list[str], more: list[str]) -> None:
    if "data.partition=column" in more:
        more = [*more, "data.records=320"]
    summary = train(make(few, *more, "federation.rounds=3"), SilentReporter())
    assert len(summary.rows) == 3
    assert all(np.isfinite(v) for v in summary.after.values())


def test_both_engines_give_the_same_adapter_under_known_noise(few: list[str]) -> None:
    vectors = []
    for engine in ("native", "opacus"):
        config = make(few, f"privacy.clipping={engine}", "unsafe_deterministic_noise=true")
        folder = train(config, SilentReporter()).folder
        with np.load(folder / "checkpoint" / "state.npz") as state:
            vectors.append(state["adapter"])
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-4
    assert np.abs(vectors[0]).max() > 1e-3


def test_the_command_gives_one_adapter_in_all_three_ways_of_summing(settings: list[str], tmp_path: Path) -> None:
    """The same seeds and noise, another trust: bit for bit the same, dropouts included."""
    more = ["unsafe_deterministic_noise=true", "evaluation.baselines=false", "adapter.last_layers=1"]
    vectors = []
    for way in ("pairwise", "committee", "encrypted"):
        arguments = ["train", "--quiet", "--json"]
        for key in [*settings, *more, f"run.name={way}"]:
            arguments += ["--set", key]
        if way != "pairwise":  # the default
            arguments += ["--aggregation", way]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        assert [row["survivors"] for row in json.loads(result.stdout)["rounds"]] == [7, 7]
        with np.load(tmp_path / "runs" / way / "checkpoint" / "state.npz") as state:
            vectors.append(state["adapter"])
    assert np.abs(vectors[0]).max() > 1e-3
    np.testing.assert_array_equal(vectors[0], vectors[1])
    np.testing.assert_array_equal(vectors[0], vectors[2])
    answer = CliRunner().invoke(app, ["train", "--aggregation", "trust-me"])
    assert answer.exit_code == 2 and "federation.aggregation" in answer.stderr


def test_two_runs_of_one_seed_differ_in_their_noise(few: list[str]) -> None:
    # A rate at which two rounds take the adapter well away from the start that both runs share.
    config = make(few, "federation.server_lr=0.1")
    first, second = (train(config, SilentReporter()).folder for _ in range(2))
    states = [np.load(f / "checkpoint" / "state.npz")["adapter"] for f in (first, second)]
    assert np.corrcoef(states[0], states[1])[0, 1] < 0.9


def test_a_gradient_that_is_not_finite_does_not_stop_a_protected_run(
    few: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = RecordLosses.losses

    def broken(self: RecordLosses, indices: object) -> torch.Tensor:
        return original(self, indices) * float("nan")  # type: ignore[arg-type]

    monkeypatch.setattr(RecordLosses, "losses", broken)
    folder = train(make(few), SilentReporter()).folder
    adapter = np.load(folder / "checkpoint" / "state.npz")["adapter"]
    assert np.isfinite(adapter).all() and adapter.any()  # noise alone


def test_an_adapter_that_did_not_move_is_an_error(few: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from carefl_secure.federation.server.optimizers import FedAdam

    monkeypatch.setattr(FedAdam, "step", lambda self, adapter, gradient: adapter.copy())
    with pytest.raises(AdapterUnmovedError, match="server_lr"):
        train(make(few), SilentReporter())


@pytest.mark.skipif(not LONDON.exists(), reason="the London faces are not next to this checkout")
def test_real_photographs_train_end_to_end(settings: list[str]) -> None:
    more = [
        f"data.source={LONDON}",
        "federation.clients=4",
        "simulation.dropout=0",
        "privacy.sample_rate=0.5",
        "data.partition=column",
        "data.column=subject",
        "evaluation.baselines=false",
    ]
    chosen = [s for s in settings if not s.startswith("data.records")]
    summary = train(make(chosen, *more), SilentReporter())
    assert len(summary.rows) == 2 and summary.rows[-1]["survivors"] == 4
    papers = ("metrics.jsonl", "config.yaml", "plan.json")
    text = "".join((summary.folder / name).read_text() for name in papers)
    assert "_03.jpg" not in text and "female" not in text  # nothing of a record in the papers


def class_folder(root: Path) -> Path:
    for label in ("Happiness", "Neutral"):
        (root / label).mkdir(parents=True)
        for i in range(12):
            noise = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / label / f"{i}.png")
    return root


def empty(root: Path) -> Path:
    root.mkdir()
    return root


def unreadable(root: Path) -> Path:
    """Return a corpus with more unreadable images than may be skipped."""
    home = class_folder(root) / "Neutral"
    for i in range(3, 9):
        (home / f"{i}.png").write_bytes(b"not an image")
    return root


def foreign_label(root: Path) -> Path:
    class_folder(root)
    (root / "Neutral").rename(root / "Bored")
    return root


@pytest.mark.parametrize(
    ("build", "more", "code", "words"),
    [
        (empty, [], 10, "image"),
        (unreadable, [], 10, "3.png"),
        (foreign_label, ["--set", "data.labels=basic"], 11, "Bored"),
        (None, ["--epsilon", "0"], 2, "epsilon"),
        (None, ["--epsilon", "-1"], 2, "epsilon"),
        (None, ["--set", "privacy.epsilom=8"], 2, "epsilon"),
        (None, ["--clients", "2"], 2, "clients"),
        (None, ["--set", "federation.min_survivors=3"], 2, "min_survivors"),
    ],
)
def test_bad_input_is_answered_with_its_code(
    settings: list[str], tmp_path: Path, build: Callable[[Path], Path] | None, more: list[str], code: int, words: str
) -> None:
    arguments = ["train", "--quiet"]
    for key in settings:
        if build is None or not key.startswith("data."):
            arguments += ["--set", key]
    if build is not None:
        arguments += ["--data", str(build(tmp_path / "corpus"))]
    result = CliRunner().invoke(app, [*arguments, *more])
    assert result.exit_code == code, result.output
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_spent_budget_stops_the_next_run_with_its_code(few: list[str], tmp_path: Path) -> None:
    arguments = ["train", "--quiet", "--epsilon", "5"]
    for key in [*few, f"privacy.ledgers={tmp_path / 'ledgers'}", "privacy.max_epsilon=5"]:
        arguments += ["--set", key]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    second = CliRunner().invoke(app, arguments)
    assert second.exit_code == 21, second.output
    assert "privacy.max_epsilon=5" in second.stderr and "is left" in second.stderr


def test_a_published_layout_trains_on_its_own_splits(settings: list[str], tmp_path: Path) -> None:
    """RAF-DB's folders with made-up pictures: its own test list is what is scored."""
    root = tmp_path / "raf" / "basic"
    (root / "EmoLabel").mkdir(parents=True)
    (root / "Image" / "aligned").mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = []
    for name in [f"train_{i:05d}" for i in range(1, 61)] + [f"test_{i:04d}" for i in range(1, 15)]:
        picture = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
        Image.fromarray(picture).save(root / "Image" / "aligned" / f"{name}_aligned.jpg")
        lines.append(f"{name}.jpg {rng.integers(1, 8)}")
    (root / "EmoLabel" / "list_patition_label.txt").write_text("\n".join(lines) + "\n")
    chosen = [s for s in settings if not s.startswith("data.records")]
    more = [f"data.source={root.parent}", "data.labels=basic", "federation.clients=4"]
    summary = train(make(chosen, *more, "simulation.dropout=0", "data.public_fraction=0.2"), SilentReporter())
    plan = json.loads((summary.folder / "plan.json").read_text())
    assert plan["privacy"]["public_records"] == 48
    assert np.isfinite(summary.after["mAP"])


def test_an_interrupted_run_goes_on(few: list[str], tmp_path: Path) -> None:
    """Stopped in its third round, resumed by the command: paid rounds stay paid."""
    stop = ["federation.rounds=4", "run.name=broken-off"]

    class Impatient(SilentReporter):
        def round(self, row: Mapping[str, float | int | str]) -> None:
            if row["round"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make(few, *stop), Impatient())
    folder = tmp_path / "runs" / "broken-off"
    result = CliRunner().invoke(app, ["train", "--quiet", "--resume", str(folder)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    ledger = Ledger(folder / "ledger.jsonl")
    ledger.verify()
    assert len(ledger.events()) == 4 and rows[-1]["epsilon"] <= 8
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    again = CliRunner().invoke(app, ["train", "--resume", str(folder), "--rounds", "9"])
    assert again.exit_code == 2 and "--resume" in again.stderr
    nowhere = CliRunner().invoke(app, ["train", "--resume", str(tmp_path)])
    assert nowhere.exit_code == 40


def test_the_command_prints_table_folder_and_promise(settings: list[str]) -> None:
    arguments = ["train", "--epsilon", "8"]
    for key in settings:
        arguments += ["--set", key]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for word in ("mAP", "macro f1", "run folder", "reasonable, not strong", "pixel probe"):
        assert word in result.stdout
    as_json = CliRunner().invoke(app, [*arguments, "--quiet", "--json", "--set", "evaluation.baselines=false"])
    assert len(json.loads(as_json.stdout)["rounds"]) == 2
