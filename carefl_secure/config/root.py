"""The whole configuration, and what its sections must agree on."""

from __future__ import annotations

from pydantic import Field, model_validator

from carefl_secure.config.rules import check_work, local_lr, local_steps, server_lr, updates_are_summed
from carefl_secure.config.sections import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    FederationConfig,
    ModelConfig,
    PerformanceConfig,
    PrivacyConfig,
    RunConfig,
    Section,
    SimulationConfig,
    StagesConfig,
    default_min_survivors,
)

_DROPOUT = 0.1


class Config(Section):
    """The whole configuration of one run."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    stages: StagesConfig = Field(default_factory=StagesConfig)
    simulation: SimulationConfig = Field(default_factory=SimulationConfig)
    performance: PerformanceConfig = Field(default_factory=PerformanceConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    run: RunConfig = Field(default_factory=RunConfig)
    unsafe_deterministic_noise: bool = Field(
        default=False, description="for tests only: predictable noise and keys, which protect nothing"
    )

    @property
    def sums_updates(self) -> bool:
        """Whether clients release updates of local steps, and not sums of gradients."""
        return updates_are_summed(self.privacy, self.federation)

    @property
    def local_steps(self) -> int:
        """Local steps in a round, as a number."""
        return local_steps(self.privacy, self.federation)

    @property
    def local_lr(self) -> float:
        """Learning rate of the local steps, as a number."""
        return local_lr(self.privacy, self.federation)

    @property
    def server_lr(self) -> float:
        """Learning rate of the server, as a number."""
        return server_lr(self.privacy, self.federation)

    @property
    def dropout(self) -> float:
        """Simulated probability that a client drops out of a round, as a number."""
        if self.simulation.dropout != "auto":
            return self.simulation.dropout
        fits = self.federation.clients * (1 - _DROPOUT) >= self.federation.min_survivors
        return _DROPOUT if fits else 0.0

    @property
    def stage_rounds(self) -> tuple[int, ...]:
        """Rounds of each stage, as numbers; of a run in one stage, all of them."""
        return stage_rounds(self)

    @model_validator(mode="after")
    def _agree(self) -> Config:
        check_work(self.privacy, self.federation, self.adapter)
        check_stages(self)
        if self.model.quantization == "int8" and self.privacy.unit in ("record", "person"):
            raise ValueError(
                f"model.quantization=int8 is not accepted under privacy.unit={self.privacy.unit}: "
                "on CUDA it picks outlier columns over the whole batch, so that one record changes "
                "the gradients of others and clipping bounds nothing; set model.quantization=nf4 "
                "or none"
            )
        clients, least = self.federation.clients, self.federation.min_survivors
        dropout, stragglers = self.dropout, self.simulation.stragglers
        expected = clients * (1 - dropout)
        if expected < least:
            raise ValueError(
                f"with simulation.dropout={dropout:g} only {expected:.1f} of {clients} clients are "
                f"expected to survive a round, fewer than the {least} that it needs; lower "
                "simulation.dropout or add clients"
            )
        if stragglers and (self.local_steps < 2 or not self.sums_updates):
            raise ValueError(
                f"simulation.stragglers={stragglers:g} lets clients do part of several local "
                "steps, and there is only one; set federation.local_steps above 1 or leave it out"
            )
        most = min(2 * default_min_survivors(clients) - clients, least) - 1
        if self.privacy.max_colluders > most:
            raise ValueError(
                f"privacy.max_colluders={self.privacy.max_colluders} is too many for "
                f"{clients} clients: with more than {most} the survivor set can be forged or no "
                "honest noise may be left; lower it or add clients"
            )
        described = self.model.context in ("own", "shuffled", "wrong")
        if described and not self.data.synthetic and self.model.context_cache is None:
            raise ValueError(
                f"model.context={self.model.context} needs captions of {self.data.source}: make "
                "them with 'carefl-secure caption' and name their folder in model.context_cache"
            )
        records = self.data.records
        if records is not None:
            if records < clients:
                raise ValueError(
                    f"data.records={records} is less than one for each of {clients} clients; "
                    "raise data.records or lower federation.clients"
                )
            if self.privacy.unit != "none" and self.privacy.delta >= 1 / records:
                raise ValueError(
                    f"privacy.delta={self.privacy.delta:g} is not below one over the {records} "
                    "private records, which would allow one record to be published whole; set "
                    f"privacy.delta below {1 / records:.2g}"
                )
        return self


def stage_rounds(config: Config) -> tuple[int, ...]:
    """Return the rounds of each stage; all rounds as one where there are no stages."""
    total, stages = config.federation.rounds, config.stages
    if not stages.spaces:
        return (total,)
    if stages.rounds is not None:
        return stages.rounds
    share, rest = divmod(total, len(stages.spaces))
    return tuple(share + (place < rest) for place in range(len(stages.spaces)))


def stage_config(config: Config, place: int) -> Config:
    """Return one stage's settings, as those of a run of its own."""
    space, rounds = config.stages.spaces[place], stage_rounds(config)[place]
    return config.model_copy(
        update={
            "stages": StagesConfig(),
            "data": config.data.model_copy(update={"labels": space}),
            "federation": config.federation.model_copy(update={"rounds": rounds}),
        }
    )


def check_stages(config: Config) -> None:
    """Raise `ValueError` with what to change where stages contradict the rest of the settings."""
    stages, federation = config.stages, config.federation
    if not stages.spaces:
        return
    last = stages.spaces[-1]
    if config.data.labels not in ("auto", last):
        raise ValueError(
            f"data.labels={config.data.labels} contradicts stages.spaces: each stage has its own "
            f"labels and the last, {last}, decides the scores; leave data.labels out"
        )
    rounds = stage_rounds(config)
    if min(rounds) < 1:
        raise ValueError(
            f"federation.rounds={federation.rounds} leaves a stage of {len(rounds)} without a round; raise it"
        )
    if sum(rounds) != federation.rounds:
        raise ValueError(
            f"stages.rounds={','.join(map(str, rounds))} sums to {sum(rounds)} and "
            f"federation.rounds is {federation.rounds}; set federation.rounds={sum(rounds)}"
        )
    if federation.public_records is not None:
        raise ValueError(
            "federation.public_records declares one number and every stage has records of its own; "
            "leave it out: stages run in this process, which counts them"
        )
    begun = [sum(rounds[:place]) for place in range(len(rounds))]
    if config.adapter.train == "alternate" and stages.handover != "carry" and any(number % 2 for number in begun):
        raise ValueError(
            "under adapter.train=alternate a fresh adapter must begin in an odd round, with B, as "
            "A learns nothing while B is zero; give every stage but the last an even number in "
            "stages.rounds"
        )
