"""The section ``data``: the records, and who holds which of them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from carefl_secure.config.sections.base import Part, Section, Seed

SYNTHETIC_RECORDS = 8000  # how many private records are drawn where ``data.source`` is ``synthetic`` by default


class DataConfig(Section):
    """The records, and who holds which of them."""

    source: str = Field(default="synthetic", min_length=1, description='"synthetic", or the path of an image folder')
    format: str = Field(
        default="auto",
        min_length=1,
        description="the corpus format, such as imagefolder, rafdb or one that another package "
        "brings; auto looks for the marks of the published corpora",
    )
    deduplicate: Literal["refuse", "drop", "keep"] = Field(
        default="refuse",
        description="what is done about equal images: refuse those in two splits, drop all but the first, or keep all",
    )
    labels: Literal["auto", "emotic", "basic", "compound", "caers", "cexpr", "fer2013"] = Field(
        default="auto", description="label space; auto takes that of the corpus"
    )
    words: tuple[str, ...] | None = Field(
        default=None,
        description="label words of image folders, in the same order at all sites; null takes "
        "those of the folder, which only a run on one machine can do",
    )
    multi: bool = Field(default=False, description="whether a record may have several of data.words")
    at_sites: bool = Field(
        default=False,
        description="the private records are at the sites of a deployment, and data.source holds "
        "public and test records only; 'carefl-secure submit' sets it",
    )
    view: str = Field(
        default="auto",
        description="image or person (EMOTIC), image or face (CAER-S), aligned, original or "
        "realigned (RAF-DB), original or aligned (the synthetic corpus); auto takes the first",
    )
    records: int | None = Field(
        default=None, ge=1, description="number of private records, only where source is synthetic"
    )
    seed: Seed = Field(default=0, description="seed of the synthetic corpus, the split and the partition")
    cache_dir: Path | None = Field(
        default=None, description="folder of synthetic corpora; null takes the user's cache folder"
    )
    public_fraction: Part = Field(
        default=0.1, description="share of a folder's records that is public, for thresholds"
    )
    test_fraction: Part = Field(default=0.2, description="share of a folder's records that is used for scoring only")
    partition: Literal["iid", "dirichlet", "column", "quantity", "folder"] = Field(
        default="iid",
        description="how clients share the training records out: evenly, with skewed labels, by "
        "an attribute, with skewed sizes, or one folder for each client",
    )
    alpha: float = Field(
        default=0.5,
        ge=1e-6,
        le=1e6,
        description="concentration of partition=dirichlet and =quantity; smaller is more skew",
    )
    column: str | None = Field(
        default=None, description='attribute to partition by under partition=column, or "subject"'
    )

    @property
    def synthetic(self) -> bool:
        """Whether the corpus is drawn rather than read."""
        return self.source == "synthetic"

    @model_validator(mode="after")
    def _agree(self) -> DataConfig:
        if self.public_fraction + self.test_fraction >= 1:
            raise ValueError(
                "data.public_fraction and data.test_fraction leave nothing to train on; "
                "lower them so that they sum to less than 1"
            )
        if self.words is None and self.multi:
            raise ValueError("data.multi goes with data.words; list the label words, or leave it out")
        if self.words is not None:
            if self.labels != "auto" or self.synthetic:
                raise ValueError(
                    "data.words are the labels of image folders; leave data.labels out, and name a "
                    "folder in data.source"
                )
            if len(self.words) < 2 or len(set(self.words)) < len(self.words):
                raise ValueError("data.words needs at least two words, each of them once")
        if self.records is not None and not self.synthetic:
            raise ValueError("data.records sizes the synthetic corpus only; a folder is taken whole, so leave it out")
        if self.synthetic and (self.format != "auto" or self.partition == "folder"):
            raise ValueError("data.format and data.partition=folder go with a folder; name one in data.source")
        if self.partition == "column" and self.column is None:
            raise ValueError("data.partition=column needs data.column; name an attribute of the corpus, or subject")
        if self.partition != "column" and self.column is not None:
            raise ValueError(
                f"data.column has no effect under data.partition={self.partition}; "
                "set data.partition=column or leave data.column out"
            )
        return self
