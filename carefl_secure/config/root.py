"""The whole configuration, and what its sections must agree on."""

from __future__ import annotations

from pydantic import Field, model_validator

from carefl_secure.config.sections import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    FederationConfig,
    ModelConfig,
    PrivacyConfig,
    RunConfig,
    Section,
    survivor_floor,
)
from carefl_secure.config.stages import StagesConfig, check_stages, stage_rounds
from carefl_secure.config.work import (
    check_work,
    local_lr,
    local_steps,
    moves_are_summed,
    server_lr,
)

__all__ = ["Config"]


class Config(Section):
    """The whole configuration of one run."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    stages: StagesConfig = Field(default_factory=StagesConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    run: RunConfig = Field(default_factory=RunConfig)
    unsafe_deterministic_noise: bool = Field(
        default=False,
        description="tests only: noise and keys that anyone can predict protect nothing",
    )

    @property
    def sums_moves(self) -> bool:
        """Whether clients release what they moved in local steps, and not sums of gradients."""
        return moves_are_summed(self)

    @property
    def local_steps(self) -> int:
        """Local steps in a round, as a number."""
        return local_steps(self)

    @property
    def local_lr(self) -> float:
        """Learning rate of the local steps, as a number."""
        return local_lr(self)

    @property
    def server_lr(self) -> float:
        """Learning rate of the server, as a number."""
        return server_lr(self)

    @property
    def stage_rounds(self) -> tuple[int, ...]:
        """Rounds of each stage, as numbers; of a run in one stage, all of them."""
        return stage_rounds(self)

    @model_validator(mode="after")
    def _agree(self) -> Config:
        check_work(self)
        check_stages(self)
        clients, floor = self.federation.clients, self.federation.floor
        most = min(2 * survivor_floor(clients) - clients, floor) - 1
        if self.privacy.max_colluders > most:
            raise ValueError(
                f"privacy.max_colluders={self.privacy.max_colluders} is too many for "
                f"{clients} clients: with more than {most} the survivor set can be forged or no "
                "honest noise may be left; lower it or add clients"
            )
        if self.federation.encryption == "ckks" and self.privacy.unit == "none":
            raise ValueError(
                "federation.encryption=ckks takes noised sums only, and privacy.unit is none: a "
                "CKKS decryption has an error that tells about the key (Li and Micciancio 2021); "
                "set federation.encryption=bfv, which is exact, or choose a unit"
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
