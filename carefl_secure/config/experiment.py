"""An experiment: variants of one base configuration, each run under the same seeds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from carefl_secure.config.explain import KNOWN
from carefl_secure.config.load import build_config, flatten, read_yaml
from carefl_secure.config.root import Config
from carefl_secure.config.sections.base import Section, Seed
from carefl_secure.errors import ConfigError

Kind = Literal["train", "zero-shot", "local", "central"]
KINDS: Mapping[str, str] = {
    "train": "the federated run that the settings describe",
    "zero-shot": "the base model as it is, no round",
    "local": "every client alone on its own records, without noise; the mean over the clients",
    "central": "all records at one party, with DP-SGD unless privacy.unit is none",
}
"""What each kind of cell does."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,39}$")]


class Variant(Section):
    """One row of the table: what it changes, and how it is made."""

    name: Name = Field(description="name of the row: letters, digits, dot, dash")
    kind: Kind = Field(default="train", description="how the cell is made")
    set: dict[str, Any] = Field(default_factory=dict, description="settings of this variant, by dotted key")
    score: dict[str, Any] = Field(
        default_factory=dict, description="settings under which the result is scored instead"
    )
    against: Name | None = Field(
        default=None, description="variant that this one is compared with; null takes reference"
    )


class Experiment(Section):
    """A table to be made: variants times seeds."""

    name: Name = Field(description="name of the experiment and of its folder")
    question: str = Field(min_length=1, description="what the table is to answer")
    base: dict[str, Any] = Field(
        default_factory=dict, description="sections of the configuration that all variants share"
    )
    seeds: tuple[Seed, ...] = Field(min_length=1, description="each variant is run once for each")
    seed_keys: tuple[str, ...] = Field(
        default=("run.seed", "data.seed", "adapter.seed"), min_length=1, description="settings that take the seed"
    )
    grid: dict[str, list[Any]] | None = Field(
        default=None, description="values by dotted key; every combination is a variant"
    )
    cells: tuple[Variant, ...] | None = Field(default=None, min_length=1, description="the variants, one by one")
    reference: Name | None = Field(
        default=None, description="variant that the others are compared with; null takes the first"
    )
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of all intervals")
    replicates: int = Field(default=400, ge=50, le=100_000, description="resamples of the test records")

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All variants, those of a grid written out."""
        return self.cells if self.cells is not None else _spread(self.grid or {})

    def compared_with(self, variant: Variant) -> str:
        """Return the name of the variant that this one is compared with."""
        return variant.against or self.reference or self.variants[0].name

    @model_validator(mode="after")
    def _agree(self) -> Experiment:
        if (self.grid is None) == (self.cells is None):
            raise ValueError("give either grid or cells, one of the two")
        if self.grid is not None and (not self.grid or not all(self.grid.values())):
            raise ValueError("grid needs at least one key, and every key at least one value")
        names = [variant.name for variant in self.variants]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two variants have the name {twice[0]!r}; rename one")
        for name in [self.reference, *(variant.against for variant in self.variants)]:
            if name is not None and name not in names:
                raise ValueError(f"no variant has the name {name!r}; choose one of {', '.join(names)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds lists a seed twice, which would count one run twice")
        return self


def _spread(grid: Mapping[str, list[Any]]) -> tuple[Variant, ...]:
    found = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        words = (f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in chosen.items())
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", "_".join(words)).strip("._-")[:40]
        found.append(Variant(name=name, set=chosen))
    return tuple(found)


class Cell:
    """One run of a variant: trained under ``config``, scored under ``scored``, mostly the same."""

    def __init__(self, variant: Variant, seed: int, config: Config, scored: Config) -> None:
        self.variant, self.seed = variant, seed
        self.config, self.scored = config, scored

    @property
    def name(self) -> str:
        """Name of the cell and of its folder."""
        return f"{self.variant.name}-seed{self.seed}"


def load_experiment(path: Path) -> Experiment:
    """Read an experiment from a YAML file, refusing unknown and contradictory keys."""
    settings = read_yaml(path)
    try:
        return Experiment.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ").replace("Input should", "must")
        known = ", ".join(Experiment.model_fields)
        raise ConfigError(f"{path}: {place + ': ' if place else ''}{message}. Known keys are {known}.") from error


def cells_of(experiment: Experiment, folder: Path, more: Mapping[str, Any] | None = None) -> list[Cell]:
    """Expand an experiment into checked configurations; cells of one seed are adjacent and share computation.

    Run folders go into ``folder``. ``more`` are settings by dotted key that override those of the file's base;
    variants override both. A `ConfigError` names the cell.
    """
    base = {**flatten(experiment.base), **(more or {})}
    for key in experiment.seed_keys:
        if key not in KNOWN:
            raise ConfigError(f"seed_keys names {key!r}, which is no setting")
    found = []
    for seed in experiment.seeds:
        for variant in experiment.variants:
            settings = {
                **base,
                **dict.fromkeys(experiment.seed_keys, seed),
                **variant.set,
                "run.dir": str(folder),
                "run.name": f"{variant.name}-seed{seed}",
            }
            try:
                config = build_config(settings)
                scored = build_config({**settings, **variant.score}) if variant.score else config
            except ConfigError as error:
                raise ConfigError(f"variant {variant.name!r}: {error}") from error
            if config.stages.spaces and variant.kind in ("local", "central"):
                raise ConfigError(
                    f"variant {variant.name!r}: stages belong to a federated run, and kind "
                    f"{variant.kind} trains otherwise; leave stages out"
                )
            found.append(Cell(variant, seed, config, scored))
    return found
