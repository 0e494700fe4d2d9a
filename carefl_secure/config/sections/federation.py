"""The section ``federation``: who takes part, and what becomes of the sum."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from carefl_secure.config.sections.base import Section, Share, installed

PROTOCOLS = ("pairwise", "committee", "encrypted")
MOST_PEERS = 1000  # most clients of a run without a committee
_AUTO: Any = "auto"


def default_min_survivors(clients: int) -> int:
    """Return the fewest clients a round may end with: ``floor(2 n / 3) + 1``.

    Two such sets out of ``n`` share more than a third of the clients, so a server cannot get two
    different sets of survivors signed unless that many clients sign twice.
    """
    return 2 * clients // 3 + 1


class FederationConfig(Section):
    """Who takes part, how a round is aggregated, and what the server does with the sum."""

    clients: int = Field(default=8, ge=1, le=10_000, description="number of clients")
    rounds: int = Field(default=20, ge=1, le=100_000, description="number of rounds")
    aggregator: Literal["fedavg", "fedprox", "fedadam", "feddyn"] = Field(
        default="fedadam",
        description="server optimizer on the mean gradient or update; fedprox and feddyn also "
        "modify the local objective",
    )
    server_lr: Annotated[float, Field(gt=0, le=1e4)] | Literal["auto"] = Field(
        default="auto",
        description="learning rate of the server; feddyn has none. auto has a pilot on public records choose it, or "
        "takes it from the model's size; for updates it is 1 with fedprox and 1 - momentum with fedavg",
    )
    local_steps: Annotated[int, Field(ge=1, le=10_000)] | Literal["auto"] = Field(
        default="auto",
        description="local steps of a client in a round; auto is 1 where gradients are summed, 10 "
        "where updates are, and 5 under privacy.trust=none",
    )
    local_lr: Annotated[float, Field(gt=0, le=1e4)] | Literal["auto"] = Field(
        default="auto",
        description="learning rate of the local steps; auto is 10, 3 for feddyn, and 0.3 under privacy.trust=none",
    )
    local_rule: str = Field(
        default="sgd",
        min_length=1,
        description="optimizer of the local steps: sgd, or one that an installed package brings",
    )
    proximal_mu: float = Field(default=0.01, gt=0, le=1e4, description="proximal term of aggregator=fedprox")
    feddyn_alpha: float = Field(default=0.1, gt=0, le=1e4, description="regulariser of aggregator=feddyn")
    noise_correction: bool = Field(
        default=False, description="subtract the noise variance from the second moment of aggregator=fedadam"
    )
    momentum: Share = Field(default=0.9, description="momentum of aggregator=fedavg")
    betas: tuple[Share, Share] = Field(
        default=(0.8, 0.99),
        description="decay rates of aggregator=fedadam; where a label head alone is trained, the first is at most 0.5",
    )
    min_survivors: int = Field(
        default=_AUTO,
        ge=1,
        validate_default=True,
        description="fewest clients that a round may end with; auto is floor(2n/3)+1",
    )
    aggregation: Literal["pairwise", "committee", "encrypted"] | str = Field(
        default="pairwise",
        description="aggregation protocol: pairwise masking among the clients, masks that a "
        "committee removes so that a client sends one message, pairwise masking under encryption "
        "with a separate key holder, or one that an installed package brings",
    )
    committee_members: int = Field(
        default=3,
        ge=2,
        le=5,
        description="members of aggregation=committee; all are needed, and one honest one is enough",
    )
    committee_dropout_tolerance: int = Field(
        default=0,
        ge=0,
        le=2,
        description="committee members that may drop out of a round; 2 * "
        "committee_dropout_tolerance + 1 of them must then be honest",
    )
    key_prefetch: bool = Field(
        default=True,
        description="send the keys of the next round with the messages of this one, so that a "
        "round has three exchanges instead of five (four with a committee); changes no result, "
        "and nothing under aggregation=encrypted",
    )
    max_rejected_rounds: Annotated[int, Field(ge=0)] | None = Field(
        default=10,
        description="rounds whose opened sum is longer than honest clients can make it, after "
        "which the run ends; until then they are discarded, and clients left out to find the "
        "sender. null takes a step on every sum",
    )
    max_agreement: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="largest norm of a sum of clipped contributions, over that of contributions "
        "that all point the same way; 1 is certain, less is an assumption that tightens the bound on opened sums",
    )
    public_records: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="declared number of private records (persons) of all clients; null counts "
        "them, which only a simulation can do",
    )

    @field_validator("min_survivors", mode="before")
    @classmethod
    def _resolved(cls, value: Any, info: ValidationInfo) -> Any:
        if value != _AUTO:
            return value
        # Where the number of clients is not valid, the error is about that number alone.
        return default_min_survivors(info.data.get("clients", 1))

    @field_validator("aggregation")
    @classmethod
    def _known_protocol(cls, name: str) -> str:
        return installed(name, PROTOCOLS, "carefl_secure.aggregators")

    @field_validator("local_rule")
    @classmethod
    def _known_rule(cls, name: str) -> str:
        return installed(name, ("sgd",), "carefl_secure.local_rules")

    @model_validator(mode="after")
    def _agree(self) -> FederationConfig:
        if self.max_rejected_rounds is None and self.max_agreement < 1:
            raise ValueError(
                f"federation.max_agreement={self.max_agreement:g} has no effect under "
                "federation.max_rejected_rounds=null; leave one of them out"
            )
        if self.clients < 3:
            raise ValueError(
                f"federation.clients={self.clients} is below 3: of two clients each could subtract its own vector "
                "from the opened sum and so learn the other's, which hides nothing; invite a third party"
            )
        lowest = default_min_survivors(self.clients)
        if self.min_survivors < lowest:
            raise ValueError(
                f"federation.min_survivors={self.min_survivors} is below floor(2n/3)+1 = "
                f"{lowest} for {self.clients} clients; raise it, or leave it at auto"
            )
        if self.min_survivors > self.clients:
            raise ValueError(
                f"federation.min_survivors={self.min_survivors} is more than federation.clients="
                f"{self.clients}; lower it, or leave it at auto"
            )
        if self.aggregation != "committee" and self.clients > MOST_PEERS:
            raise ValueError(
                f"federation.aggregation={self.aggregation} takes at most {MOST_PEERS} clients, "
                f"not {self.clients}; set federation.aggregation=committee"
            )
        members = type(self).model_fields["committee_members"].default
        for name, default in (("committee_members", members), ("committee_dropout_tolerance", 0)):
            value = getattr(self, name)
            if self.aggregation != "committee" and value != default:
                raise ValueError(
                    f"federation.{name}={value} has no effect under federation.aggregation="
                    f"{self.aggregation}; set federation.aggregation=committee or leave federation.{name} out"
                )
        if 2 * self.committee_dropout_tolerance >= self.committee_members:
            raise ValueError(
                f"federation.committee_dropout_tolerance={self.committee_dropout_tolerance} needs at least "
                f"{2 * self.committee_dropout_tolerance + 1} committee members, and there are "
                f"{self.committee_members}; raise federation.committee_members or lower "
                "federation.committee_dropout_tolerance"
            )
        return self
