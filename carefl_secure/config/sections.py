"""The sections of the configuration: one frozen model each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "EvaluationConfig",
    "FederationConfig",
    "ModelConfig",
    "PrivacyConfig",
    "RunConfig",
    "Section",
    "survivor_floor",
]

SYNTHETIC_RECORDS = 8000
"""How many private records are drawn where ``data.source`` is ``synthetic``, unless told."""

MOST_PEERS = 1000
"""How many clients can sum among themselves; a committee takes more."""

Share = Annotated[float, Field(ge=0, lt=1)]
Part = Annotated[float, Field(gt=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Target = Literal["q", "k", "v", "o", "gate", "up", "down"]


def survivor_floor(clients: int) -> int:
    """Return the fewest clients a round may end with: ``floor(2 n / 3) + 1``.

    Two sets of that size out of ``n`` share more than a third of the clients, so a server cannot
    get two different sets of survivors signed unless that many clients sign twice.
    """
    return 2 * clients // 3 + 1


class Section(BaseModel):
    """What all sections share: frozen, no unknown keys, finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` where a number is asked for; Python would read it as 1."""
        name = info.field_name
        if isinstance(value, bool) and name and cls.model_fields[name].annotation is not bool:
            raise ValueError("expected a number or a word, not a truth value")
        return value


class DataConfig(Section):
    """What is learnt from, and who holds which part of it."""

    source: str = Field(
        default="synthetic", min_length=1, description='"synthetic", or the path of an image folder'
    )
    labels: Literal["auto", "emotic", "basic", "compound", "caers", "cexpr"] = Field(
        default="auto", description="the label space; auto takes what the corpus itself carries"
    )
    view: str = Field(
        default="auto",
        description="image or person (EMOTIC), image or face (CAER-S), aligned, original or "
        "realigned (RAF-DB), original or aligned (the synthetic corpus); auto takes the first",
    )
    records: int | None = Field(
        default=None, ge=1, description="private records to draw; only where source is synthetic"
    )
    seed: Seed = Field(
        default=0, description="seed of the synthetic corpus, the split and the partition"
    )
    cache_dir: Path | None = Field(
        default=None,
        description="folder of the drawn corpora; null takes the cache folder of the user",
    )
    public_fraction: Part = Field(
        default=0.1, description="share of a folder's records that is public: thresholds"
    )
    test_fraction: Part = Field(
        default=0.2, description="share of a folder's records that is only scored"
    )
    partition: Literal["iid", "dirichlet", "column", "quantity"] = Field(
        default="iid",
        description="how clients share the training records out: evenly, with skewed labels, by an "
        "attribute, or with skewed sizes",
    )
    alpha: float = Field(
        default=0.5,
        gt=0,
        le=1e6,
        description="concentration of partition=dirichlet and =quantity; smaller is more skew",
    )
    column: str | None = Field(
        default=None, description='attribute that partition=column goes by, or "subject"'
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
        if self.records is not None and not self.synthetic:
            raise ValueError(
                "data.records sizes the synthetic corpus only; a folder is taken whole, so leave "
                "it out"
            )
        if self.partition == "column" and self.column is None:
            raise ValueError(
                "data.partition=column needs data.column; name an attribute of the corpus, "
                "or subject"
            )
        if self.partition != "column" and self.column is not None:
            raise ValueError(
                f"data.column has no effect under data.partition={self.partition}; "
                "set data.partition=column or leave data.column out"
            )
        return self


class ModelConfig(Section):
    """The frozen base model."""

    base: str = Field(
        default="embedded",
        min_length=1,
        description='"embedded", a hub id, or the path of a snapshot',
    )
    revision: str | None = Field(
        default=None, description="commit of a hub model; null takes the newest that is cached"
    )
    quantization: Literal["nf4", "int8", "none"] = Field(
        default="nf4", description="how the frozen weights of the text model are stored"
    )
    compute_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="the type that activations are computed in"
    )
    prompt: str = Field(
        default="default",
        min_length=1,
        description="what the model is asked: default, list, scene, face, expert, or the path of "
        "a text file, in which {question} and {labels} stand for those of the label space",
    )
    context: Literal["none", "own", "shuffled", "wrong", "constant"] = Field(
        default="none",
        description="whose caption stands before the question: the record's own; another, public "
        "record's (shuffled, or wrong: one with other labels); the same words for all; or none",
    )
    context_cache: Path | None = Field(
        default=None,
        description="folder that 'carefl-secure caption' wrote; null asks the describer of the "
        "synthetic corpus",
    )
    context_dropout: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="share of records, the clients' and the server's, left without caption",
    )
    context_error: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="chance with which the describer states a fact of a scene wrongly"
    )

    @model_validator(mode="after")
    def _agree(self) -> ModelConfig:
        if self.context == "none" and self.context_dropout:
            raise ValueError(
                "model.context_dropout has no effect under model.context=none; leave it out"
            )
        described = self.context in ("own", "shuffled", "wrong")
        if not described and self.context_cache is not None:
            raise ValueError(
                f"model.context_cache has no effect under model.context={self.context}; leave it "
                "out, or set model.context=own"
            )
        if self.context_error and (not described or self.context_cache is not None):
            raise ValueError(
                "model.context_error sets how often the describer errs, which is not asked here; "
                "leave it out, or leave model.context_cache out and set model.context=own"
            )
        if self.base == "embedded" and self.revision is not None:
            raise ValueError(
                "model.revision has no meaning for the embedded model; leave it out, or name a "
                "hub id in model.base"
            )
        return self


class AdapterConfig(Section):
    """The low-rank adapter: the only weights that are trained."""

    rank: int = Field(default=8, ge=1, le=256, description="rank of the adapter's matrices")
    alpha: int = Field(
        default=16, ge=1, le=4096, description="the update is scaled by alpha / rank"
    )
    targets: tuple[Target, ...] = Field(
        default=("q", "k", "v", "o", "gate", "up", "down"),
        min_length=1,
        description="linear layers of each text block that are adapted",
    )
    last_layers: int | None = Field(
        default=None, ge=1, description="adapt only so many of the last text blocks; null takes all"
    )
    train: Literal["B", "both", "alternate"] = Field(
        default="B",
        description="which of the two matrices moves; B keeps A at its start values, alternate "
        "moves B in odd rounds and A in even ones",
    )
    seed: Seed = Field(default=0, description="seed of the start values, shared by all clients")

    @field_validator("targets")
    @classmethod
    def _once(cls, value: tuple[Target, ...]) -> tuple[Target, ...]:
        if len(set(value)) < len(value):
            raise ValueError("names a layer twice")
        return value


class PrivacyConfig(Section):
    """What is protected, against whom, and how much may be spent."""

    unit: Literal["record", "person", "client", "none"] = Field(
        default="record",
        description="what the guarantee protects: one record, all records of one person, all that "
        "a client holds; none switches privacy off",
    )
    trust: Literal["secagg", "none"] = Field(
        default="secagg",
        description="who makes the noise: all clients together, hidden by secure aggregation, or "
        "with none every client for itself, so that its update is private whoever sees it",
    )
    records_per_person: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="of unit=person: keep so many records of each person and clip each on its own; "
        "null keeps all and clips their mean once",
    )
    epsilon: float = Field(
        default=8.0, gt=0, le=1000, description="the most that all rounds may spend"
    )
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=1,
        description="the chance left aside; below one over the record count",
    )
    sample_rate: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="chance of each record, or person, to take part in a round or a local step; "
        "under unit=client, where nobody is drawn, the share of a client's records in a local step",
    )
    clipping_norm: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="largest l2 norm of one record's or person's gradient, or of one client's move",
    )
    normalise: bool = Field(
        default=True,
        description="scale every gradient, or client's move, to the clipping norm, instead of only "
        "cutting",
    )
    clipping: Literal["native", "opacus"] = Field(
        default="native", description="the engine of the per-record gradients"
    )
    ledgers: Path | None = Field(
        default=None,
        description="folder of client ledgers that outlive a run, so that runs on the same records "
        "add up; null keeps them in the run folder",
    )
    max_epsilon: float | None = Field(
        default=None,
        gt=0,
        description="the most a client lets its own ledger reach over all runs; null takes epsilon",
    )
    tuning_runs: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="how many earlier runs on these records chose the settings, so that the report "
        "can price them; null says in the report that nobody counted them",
    )
    max_colluders: int = Field(
        default=1, ge=0, le=10_000, description="clients that may side with the server without harm"
    )


class FederationConfig(Section):
    """Who takes part in a round, and what the server does with the sum."""

    clients: int = Field(default=8, ge=3, le=10_000, description="number of clients")
    rounds: int = Field(default=20, ge=1, le=100_000, description="number of rounds")
    dropout: Share = Field(
        default=0.1, description="simulated chance of a client to vanish in a round"
    )
    aggregator: Literal["fedavg", "fedprox", "fedadam", "feddyn"] = Field(
        default="fedadam",
        description="the server's step on the mean gradient or move; fedprox and feddyn also bend "
        "the clients' local steps",
    )
    server_lr: Annotated[float, Field(gt=0, le=1e4)] | Literal["auto"] = Field(
        default="auto",
        description="learning rate of the server; feddyn has none. auto is 0.03, and on moves 1 "
        "for fedprox and 1 - momentum for fedavg",
    )
    local_steps: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = Field(
        default="auto",
        description="steps a client takes before its move is summed; auto is 1 where gradients are "
        "summed, 10 where moves are and 5 under privacy.trust=none",
    )
    local_lr: Annotated[float, Field(gt=0, le=1e4)] | Literal["auto"] = Field(
        default="auto",
        description="learning rate of the local steps; auto is 10, 3 for feddyn, and 0.3 under "
        "privacy.trust=none",
    )
    proximal_mu: float = Field(
        default=0.01, gt=0, le=1e4, description="pull to the global adapter of aggregator=fedprox"
    )
    feddyn_alpha: float = Field(
        default=0.1, gt=0, le=1e4, description="regulariser of aggregator=feddyn"
    )
    noise_correction: bool = Field(
        default=False,
        description="take the variance of the noise off the second moment of aggregator=fedadam",
    )
    stragglers: Share = Field(
        default=0.0,
        description="simulated share of clients that do only part of their local steps in a round",
    )
    momentum: Share = Field(default=0.9, description="momentum of aggregator=fedavg")
    betas: tuple[Share, Share] = Field(
        default=(0.8, 0.99), description="decay rates of aggregator=fedadam"
    )
    min_survivors: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="fewest clients a round may end with; auto is floor(2n/3)+1"
    )
    aggregation: Literal["peer", "committee", "encrypt"] = Field(
        default="peer",
        description="how a round sums: among the peers, opened by a committee so that a client "
        "sends one message, or among the peers under encryption with a separate key holder",
    )
    encryption: Literal["bfv", "additive", "ckks"] = Field(
        default="bfv",
        description="scheme of aggregation=encrypt: bfv, exact, with a key holder; additive, "
        "EXPERIMENTAL, every client under its own key and no key holder; ckks, approximate inside, "
        "larger, for noised sums only",
    )
    committee_members: int = Field(
        default=3,
        ge=2,
        le=5,
        description="members of aggregation=committee; one honest one is enough, all are needed",
    )
    committee_spare: int = Field(
        default=0,
        ge=0,
        le=2,
        description="members of aggregation=committee that may vanish once all have announced; "
        "2 * committee_spare + 1 honest members are needed then",
    )
    micro_batch: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="records that go through the model at once; costs memory, changes no result; "
        "null takes 128 for the embedded model and 4 for any other",
    )
    public_records: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="declared number of private records (persons) over all clients; null counts "
        "them, which only a simulation can",
    )
    workers: int = Field(default=1, ge=1, le=256, description="clients that work at the same time")

    @property
    def floor(self) -> int:
        """The fewest clients a round may end with, as a number."""
        if self.min_survivors == "auto":
            return survivor_floor(self.clients)
        return self.min_survivors

    @model_validator(mode="after")
    def _agree(self) -> FederationConfig:
        lowest = survivor_floor(self.clients)
        if self.floor < lowest:
            raise ValueError(
                f"federation.min_survivors={self.floor} is below floor(2n/3)+1 = {lowest} for "
                f"{self.clients} clients; raise it, or leave it at auto"
            )
        if self.floor > self.clients:
            raise ValueError(
                f"federation.min_survivors={self.floor} is more than federation.clients="
                f"{self.clients}; lower it, or leave it at auto"
            )
        if self.aggregation != "committee" and self.clients > MOST_PEERS:
            raise ValueError(
                f"federation.aggregation={self.aggregation} takes at most {MOST_PEERS} clients, "
                f"not {self.clients}; set federation.aggregation=committee"
            )
        if self.aggregation != "encrypt" and self.encryption != "bfv":
            raise ValueError(
                f"federation.encryption={self.encryption} has no effect under "
                f"federation.aggregation={self.aggregation}; set federation.aggregation=encrypt or "
                "leave federation.encryption out"
            )
        members = type(self).model_fields["committee_members"].default
        if self.aggregation != "committee" and self.committee_members != members:
            raise ValueError(
                f"federation.committee_members={self.committee_members} has no effect under "
                f"federation.aggregation={self.aggregation}; set federation.aggregation=committee "
                "or leave federation.committee_members out"
            )
        if self.aggregation != "committee" and self.committee_spare:
            raise ValueError(
                f"federation.committee_spare={self.committee_spare} has no effect under "
                f"federation.aggregation={self.aggregation}; set federation.aggregation=committee "
                "or leave federation.committee_spare out"
            )
        if 2 * self.committee_spare >= self.committee_members:
            raise ValueError(
                f"federation.committee_spare={self.committee_spare} needs at least "
                f"{2 * self.committee_spare + 1} committee members, and there are "
                f"{self.committee_members}; raise federation.committee_members or lower "
                "federation.committee_spare"
            )
        expected = self.clients * (1 - self.dropout)
        if expected < self.floor:
            raise ValueError(
                f"with federation.dropout={self.dropout:g} only {expected:.1f} of {self.clients} "
                f"clients are expected to survive a round, below the floor of {self.floor}; "
                "lower federation.dropout or add clients"
            )
        return self


class EvaluationConfig(Section):
    """What is measured along the way."""

    every: int = Field(
        default=1, ge=1, description="rounds between two scorings; the last is scored too"
    )
    batch: int = Field(default=256, ge=1, le=4096, description="images scored at once")
    floors: bool = Field(
        default=True, description="whether simple baselines are scored beside the model"
    )
    scorer: Literal["labels", "generation"] = Field(
        default="labels",
        description="what macro F1 is decided by: the likelihoods of the labels, or the text that "
        "the model writes; mAP always ranks by likelihood",
    )
    constrained: bool = Field(
        default=False,
        description="under scorer=generation: let the model write labels and commas only",
    )


class RunConfig(Section):
    """Where a run is kept."""

    dir: Path = Field(default=Path("runs"), description="folder that holds the run folders")
    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="name of the run folder: letters, digits, dot, dash; null makes one up",
    )
    seed: Seed = Field(default=0, description="seed of everything that need not be secret")
