"""An experiment file is written out into checked cells, or refused with words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from carefl_secure.config.experiment import cells_of, load_experiment
from carefl_secure.errors import ConfigError


def write(path: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "name": "x",
        "question": "Which?",
        "base": {"federation": {"rounds": 2}, "data": {"records": 500}},
        "seeds": [3, 4],
        "cells": [{"name": "a"}, {"name": "b", "set": {"adapter.rank": 2}}],
        **changes,
    }
    chosen = {k: v for k, v in settings.items() if v is not None}
    path.write_text(yaml.safe_dump(chosen, sort_keys=False))
    return path


def test_cells_are_variants_times_seeds_with_all_seeds_set(tmp_path: Path) -> None:
    cells = cells_of(load_experiment(write(tmp_path / "x.yaml")), tmp_path / "out")
    assert [cell.name for cell in cells] == ["a-seed3", "b-seed3", "a-seed4", "b-seed4"]
    second = cells[1].config
    assert (second.adapter.rank, second.federation.rounds, second.data.records) == (2, 2, 500)
    assert {second.run.seed, second.data.seed, second.adapter.seed} == {3}
    assert second.run.dir / str(second.run.name) == tmp_path / "out" / "b-seed3"
    assert cells[1].scored is second


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    grid = {"model.context": ["none", "own"], "adapter.rank": [2, 4]}
    asked = load_experiment(write(tmp_path / "x.yaml", cells=None, grid=grid))
    assert [v.name for v in asked.variants] == [
        "context-none_rank-2",
        "context-none_rank-4",
        "context-own_rank-2",
        "context-own_rank-4",
    ]
    assert asked.compared_with(asked.variants[2]) == "context-none_rank-2"


def test_what_is_given_goes_before_the_base_and_behind_the_variant(tmp_path: Path) -> None:
    more = {"federation.rounds": 7, "adapter.rank": 32}
    cells = cells_of(load_experiment(write(tmp_path / "x.yaml")), tmp_path, more)
    assert [c.config.federation.rounds for c in cells[:2]] == [7, 7]
    assert [c.config.adapter.rank for c in cells[:2]] == [32, 2]


def test_a_cell_may_be_scored_under_other_settings(tmp_path: Path) -> None:
    cells = [{"name": "a", "set": {"data.labels": "basic"}, "score": {"data.labels": "compound"}}]
    (cell, _) = cells_of(load_experiment(write(tmp_path / "x.yaml", cells=cells)), tmp_path)
    assert (cell.config.data.labels, cell.scored.data.labels) == ("basic", "compound")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"adapter.rank": [1]}}, "either grid or cells"),
        ({"cells": None}, "either grid or cells"),
        ({"cells": None, "grid": {"adapter.rank": []}}, "at least one value"),
        ({"cells": [{"name": "a"}, {"name": "a"}]}, "two variants have the name 'a'"),
        ({"cells": [{"name": "../a"}]}, "cells.0.name"),
        ({"cells": [{"name": "a", "kind": "magic"}]}, "cells.0.kind"),
        ({"reference": "c"}, "no variant has the name 'c'"),
        ({"cells": [{"name": "a", "against": "z"}]}, "no variant has the name 'z'"),
        ({"seeds": [1, 1]}, "seeds lists a seed twice"),
        ({"seeds": []}, "seeds"),
        ({"sedes": [1]}, "sedes"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_experiment(write(tmp_path / "x.yaml", **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cells": [{"name": "odd", "set": {"adapter.rnk": 1}}]}, "variant 'odd'.*adapter.rank"),
        ({"cells": [{"name": "odd", "set": {"adapter.rank": 0}}]}, "variant 'odd'.*adapter.rank"),
        ({"base": {"adapter": {"rnk": 1}}}, "did you mean 'adapter.rank'"),
        ({"seed_keys": ["run.sead"]}, "seed_keys"),
    ],
)
def test_a_wrong_setting_is_refused_before_anything_runs(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    asked = load_experiment(write(tmp_path / "x.yaml", **changes))
    with pytest.raises(ConfigError, match=words):
        cells_of(asked, tmp_path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_experiment(tmp_path / "none.yaml")
