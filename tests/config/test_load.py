from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from carefl_secure.config import Config, dump_config, load_config
from carefl_secure.config.explain import FLAGS, KNOWN, REMOVED, RENAMED, RENAMED_VALUES
from carefl_secure.config.load import with_sha256
from carefl_secure.errors import ConfigError


def refused(*words: str, path: Path | None = None, **flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, words, **flags)
    return str(caught.value)


def written(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_layers_win_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, "privacy: {epsilon: 2, delta: 1e-6}\nfederation: {clients: 12}\n")
    config = load_config(path, ["federation.clients=16"], epsilon=4.0)
    assert config.privacy.epsilon == 4.0
    assert config.privacy.delta == 1e-6  # YAML reads 1e-6 as a word
    assert config.federation.clients == 16
    assert config.federation.rounds == Config().federation.rounds


def test_flags_name_known_settings_and_none_is_not_given() -> None:
    assert set(FLAGS.values()) <= set(KNOWN)
    assert load_config(None, epsilon=None, data=None, run_dir=None) == load_config()
    config = load_config(None, run_dir=Path("elsewhere"), data="photos", seed=3)
    assert config.run.dir == Path("elsewhere")
    assert config.data.source == "photos"
    assert config.run.seed == 3


def test_auto_values_are_resolved() -> None:
    config = load_config()
    assert config.federation.min_survivors == 6
    assert config.data.records == 8000
    assert load_config(None, data="photos").data.records is None


def test_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "# nothing yet\n")) == load_config()


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("privacy.epsilom=3", "privacy.epsilon"),
        ("epsilon=3", "privacy.epsilon"),
        ("rounds=3", "federation.rounds"),
        ("privacy.clients=3", "federation.clients"),
        ("data.partion=iid", "data.partition"),
    ],
)
def test_unknown_key_names_the_closest(word: str, meant: str) -> None:
    text = refused(word)
    assert word.partition("=")[0] in text
    assert f"did you mean '{meant}'" in text


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_names_the_new_one(old: str, new: str, tmp_path: Path) -> None:
    section, key = old.split(".")
    assert new in KNOWN
    assert old not in KNOWN
    expected = f"{old} was renamed: write {new}."
    assert refused(f"{old}=1") == expected
    assert refused(path=written(tmp_path, f"{section}: {{{key}: 1}}\n")) == expected


@pytest.mark.parametrize(
    ("key", "value", "new"), [(key, *pair) for key, values in RENAMED_VALUES.items() for pair in values.items()]
)
def test_a_renamed_value_names_the_new_one(key: str, value: str, new: str) -> None:
    assert refused(f"{key}={value}") == f"{key}={value} was renamed: write {key}={new}."
    load_config(None, [f"{key}={new}"])


@pytest.mark.parametrize("key", sorted(REMOVED))
def test_a_removed_key_says_what_to_do(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(KNOWN, key, raising=False)
    assert refused(f"{key}=1") == f"{key} was removed: {REMOVED[key]}."


def test_unknown_key_without_a_neighbour_lists_what_is_known() -> None:
    assert "federation.rounds" in refused("federation.zzzz=1")
    assert "evaluation" in refused("qqqq.zzzz=1")
    assert "data.source" in refused("data=1")


def test_unknown_key_in_a_file(tmp_path: Path) -> None:
    text = refused(path=written(tmp_path, "privacy: {epsilom: 3}\nadaptor: {rank: 4}\n"))
    assert "did you mean 'privacy.epsilon'" in text
    assert "'adaptor" in text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("privacy: [1, 2]\n", "privacy"),
        ("privacy:\n", "privacy"),
        ("- 1\n", "sections"),
        ("privacy: {epsilon: 1, epsilon: 2}\n", "twice"),
        ("privacy: {epsilon: 1\n", "not valid YAML"),
        ("privacy: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("privacy: {epsilon: !!int x}\n", "not valid YAML"),
        (f"privacy: {{epsilon: 1{'0' * 5000}}}\n", "not valid YAML"),
        ("[" * 5000, "not valid YAML"),
        ("privacy.epsilon: 3\n", "below the section privacy"),
        ("privacy: {epsilon: 1:30}\n", "number"),
        ("privacy: {epsilon: 2026-99-99}\n", "number"),
    ],
)
def test_malformed_file(tmp_path: Path, text: str, part: str) -> None:
    assert part in refused(path=written(tmp_path, text))


@pytest.mark.parametrize("word", ["federation.rounds=010", "federation.rounds=10", "federation.rounds=0xA"])
def test_a_leading_zero_makes_no_octal_number(word: str) -> None:
    assert load_config(overrides=[word]).federation.rounds == 10


@pytest.mark.parametrize("name", ["2026-11-30", "007", "2026-99-99", "1e5"])
def test_a_name_that_looks_like_a_number_or_a_date_stays_a_name(name: str, tmp_path: Path) -> None:
    config = load_config(overrides=[f"run.name={name}"])
    assert config.run.name == name
    assert load_config(written(tmp_path, dump_config(config))) == config


def test_paths_from_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of")
    words = ["privacy.ledgers=~/ledgers", "run.dir=~/runs", "data.source=~/images", "model.base=~/base"]
    config = load_config(overrides=words)
    assert (config.privacy.ledgers, config.run.dir) == (Path("/home/of/ledgers"), Path("/home/of/runs"))
    assert (config.data.source, config.model.base) == ("/home/of/images", "/home/of/base")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert "no home folder" in refused("privacy.ledgers=~/ledgers")


def test_ledgers_are_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = dump_config(load_config(overrides=["privacy.ledgers=shared"]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert load_config(written(tmp_path, text)).privacy.ledgers == tmp_path / "shared"


def test_a_long_value_is_shown_in_short(tmp_path: Path) -> None:
    bomb = "a: &a [x, x, x]\n" + "".join(
        f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefghijk")
    )
    text = refused(path=written(tmp_path, f"{bomb}privacy: {{epsilon: *k}}\n"))
    assert "privacy.epsilon" in text and len(text) < 10_000
    assert len(refused(f"run.name={'x' * 500}")) < 400


def test_missing_and_unreadable_file(tmp_path: Path) -> None:
    assert "absent.yaml" in refused(path=tmp_path / "absent.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xff}\n")
    assert "latin.yaml" in refused(path=tmp_path / "latin.yaml")


def test_word_without_equals_and_repeated_words() -> None:
    assert "no '='" in refused("privacy.epsilon")
    assert "twice" in refused("privacy.epsilon=1", "privacy.epsilon=1")
    assert "--run-dir" in refused("run.dir=a", run_dir=Path("b"))


def test_section_that_is_a_scalar_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "privacy: 3\n")
    assert "'privacy' is a section" in refused("privacy.epsilon=1", path=path)


def test_epsilon_without_privacy_is_refused() -> None:
    assert "privacy.unit=none" in refused("privacy.unit=none", epsilon=8.0)
    assert load_config(None, ["privacy.unit=none"]).privacy.unit == "none"


def test_every_finding_is_named_at_once() -> None:
    text = refused("privacy.delta=2", "federation.rounds=0", "adapter.train=A")
    assert [line.split(":")[0] for line in text.splitlines()] == [
        "adapter.train",
        "privacy.delta",
        "federation.rounds",
    ]


def test_dump_reads_back_the_same(tmp_path: Path) -> None:
    config = load_config(
        None,
        [
            "data.source=photos",
            "data.partition=column",
            "data.column=site",
            "adapter.targets=[q, v]",
            "privacy.unit=none",
            "run.name=a-1",
        ],
    )
    assert load_config(written(tmp_path, dump_config(config))) == config
    assert yaml.safe_load(dump_config(config))["data"]["column"] == "site"


@given(
    epsilon=st.floats(1e-3, 100), delta=st.floats(1e-12, 1e-5), clients=st.integers(4, 300), rate=st.floats(1e-4, 1)
)
def test_any_valid_settings_survive_the_file(
    tmp_path_factory: pytest.TempPathFactory, epsilon: float, delta: float, clients: int, rate: float
) -> None:
    words = [f"privacy.delta={delta!r}", f"privacy.sample_rate={rate!r}"]
    config = load_config(None, words, epsilon=epsilon, clients=clients)
    folder = tmp_path_factory.mktemp("config")
    assert load_config(written(folder, dump_config(config))) == config
    assert config.privacy.epsilon == epsilon
    assert config.privacy.delta == delta


def test_the_configuration_of_a_run_is_as_it_was_written_and_a_copy_may_be_changed(tmp_path: Path) -> None:
    text = with_sha256(dump_config(load_config(None, ["federation.rounds=7"])))
    path = written(tmp_path, text)
    assert load_config(path).federation.rounds == 7
    written(tmp_path, text.replace("rounds: 7", "rounds: 9"))
    assert load_config(path).federation.rounds == 9  # a copy, changed on purpose
    (tmp_path / "plan.json").write_text("{}")  # a run's folder
    assert "was changed after it was written" in refused(path=path)
    written(tmp_path, text)
    assert load_config(path).federation.rounds == 7
