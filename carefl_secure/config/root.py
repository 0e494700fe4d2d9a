"""The whole configuration, and what its sections must agree on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from carefl_secure.config.sections import run as runs
from carefl_secure.config.sections.base import Section
from carefl_secure.config.sections.data import DataConfig
from carefl_secure.config.sections.federation import PROTOCOLS, FederationConfig, default_min_survivors
from carefl_secure.config.sections.model import AdapterConfig, ModelConfig, default_targets
from carefl_secure.config.sections.privacy import PrivacyConfig
from carefl_secure.errors import ConfigError

SAMPLE_RATE = 0.2
"""Sampling rate under ``auto``, unless a run's label head is trained alone."""

_DROPOUT = 0.1
_STEPS = 10
_NOISY_STEPS = 5
_LOCAL_LR = 10.0  # plain gradients of a mean loss over many labels are small
_DYNAMIC_LOCAL_LR = 3.0  # FedDyn also adds its correction
_NOISY_LOCAL_LR = 0.3
_LOCAL_OBJECTIVES = ("fedprox", "feddyn")


class Config(Section):
    """The whole configuration of one run."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    privacy: PrivacyConfig = Field(default_factory=PrivacyConfig)
    federation: FederationConfig = Field(default_factory=FederationConfig)
    stages: runs.StagesConfig = Field(default_factory=runs.StagesConfig)
    simulation: runs.SimulationConfig = Field(default_factory=runs.SimulationConfig)
    performance: runs.PerformanceConfig = Field(default_factory=runs.PerformanceConfig)
    evaluation: runs.EvaluationConfig = Field(default_factory=runs.EvaluationConfig)
    run: runs.RunConfig = Field(default_factory=runs.RunConfig)
    unsafe_deterministic_noise: bool = Field(
        default=False, description="for tests only: predictable noise and keys, which protect nothing"
    )

    @property
    def sums_updates(self) -> bool:
        """Whether clients take local steps and release updates, and not sums of gradients.

        Always under unit client and trust none, whose noise is sized for it; never for records and persons under the
        secure sum; and without privacy where there is more than one local step.
        """
        if self.privacy.unit == "none":
            return self.local_steps > 1
        return self.privacy.unit == "client" or self.privacy.trust == "none"

    @property
    def local_steps(self) -> int:
        """Local steps in a round, as a number."""
        given, unit = self.federation.local_steps, self.privacy.unit
        if given != "auto":
            return given
        if unit == "client" or (unit == "none" and self.federation.aggregator in _LOCAL_OBJECTIVES):
            return _STEPS
        return _NOISY_STEPS if unit == "record" and self.privacy.trust == "none" else 1

    @property
    def local_lr(self) -> float:
        """Learning rate of the local steps, as a number."""
        given = self.federation.local_lr
        if given != "auto":
            return given
        if self.privacy.trust == "none":
            return _NOISY_LOCAL_LR
        return _DYNAMIC_LOCAL_LR if self.federation.aggregator == "feddyn" else _LOCAL_LR

    @property
    def momentum(self) -> float:
        """How much of a gradient the server's optimizer keeps from round to round: its momentum, or Adam's first.

        Bands are chosen by it. A label head that turns out to train alone uses at most 0.5, but whether it does is
        measured on public records, which no site needs to agree on a plan.
        """
        federation = self.federation
        return {"fedavg": federation.momentum, "fedadam": federation.betas[0]}.get(federation.aggregator, 0.0)

    @property
    def rules_out_bands(self) -> str:
        """What banded noise cannot be used with, as ``setting=value``; empty where it can."""
        privacy, federation, rate = self.privacy, self.federation, self.with_sample_rate().sample_rate
        checks = (
            (privacy.unit != "record", f"privacy.unit={privacy.unit}"),
            (privacy.trust != "secagg", f"privacy.trust={privacy.trust}"),
            (self.adapter.train == "alternate", "adapter.train=alternate"),
            (bool(self.stages.spaces), f"stages.spaces={','.join(self.stages.spaces)}"),
            (federation.aggregation not in PROTOCOLS, f"federation.aggregation={federation.aggregation}"),
            (federation.rounds < 2, f"federation.rounds={federation.rounds}"),
            (privacy.target_unclipped_quantile is not None, "privacy.target_unclipped_quantile"),
            (rate > 0.5, f"privacy.sample_rate={rate:g}"),
        )
        return next((text for applies, text in checks if applies), "")

    @property
    def sample_rate(self) -> float:
        """Sampling rate as a number; `ConfigError` under ``auto``, which depends on the run, until it is resolved."""
        if self.privacy.sample_rate == "auto":
            raise ConfigError("privacy.sample_rate=auto is not resolved; call resolve_sample_rate, or give a number")
        return self.privacy.sample_rate

    def with_sample_rate(self, rate: float = SAMPLE_RATE) -> Config:
        """Return the same configuration with ``auto`` resolved to a sampling rate; a number that was given stands."""
        if self.privacy.sample_rate != "auto":
            return self
        return self.model_copy(update={"privacy": self.privacy.model_copy(update={"sample_rate": rate})})

    @property
    def server_lr(self) -> float | None:
        """Learning rate of the server; None where it depends on the model and a pilot chooses it."""
        federation = self.federation
        if federation.server_lr != "auto":
            return federation.server_lr
        if not self.sums_updates or federation.aggregator == "fedadam":
            return None
        # Heavy-ball momentum m multiplies a steady update by 1 / (1 - m).
        return 1.0 - federation.momentum if federation.aggregator == "fedavg" else 1.0

    def with_server_lr(self, rate: float) -> Config:
        """Return the same configuration with the server's learning rate as a number."""
        federation = self.federation.model_copy(update={"server_lr": rate})
        return self.model_copy(update={"federation": federation})

    @property
    def head(self) -> Literal["linear", "text", "none"]:
        """Which label head is trained with the adapter, if any."""
        if self.adapter.head != "auto":
            return self.adapter.head
        if self.sums_updates:
            return "none"
        bare = self.model.base == "embedded" or self.model.context == "none"
        return "linear" if bare or self.stages.spaces or self._vision_targets else "text"

    @property
    def _vision_targets(self) -> set[str]:
        return {"connector", "vision"} & set(self.adapter.targets)

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
        total, stages = self.federation.rounds, self.stages
        if not stages.spaces:
            return (total,)
        if stages.rounds is not None:
            return stages.rounds
        share, rest = divmod(total, len(stages.spaces))
        return tuple(share + (place < rest) for place in range(len(stages.spaces)))

    @model_validator(mode="after")
    def _agree(self) -> Config:
        if not self.adapter.targets:
            resolved = {"targets": default_targets(self.model.base)}
            object.__setattr__(self, "adapter", self.adapter.model_copy(update=resolved))
        if self.performance.gradient_checkpointing and self.privacy.clipping == "opacus":
            raise ValueError(
                "performance.gradient_checkpointing hides gradients from Opacus; set it to false, or set "
                "privacy.clipping=native"
            )
        if self.adapter.warm_start == "public" and self.stages.spaces:
            raise ValueError(
                "adapter.warm_start=public has the labels of one run, and stages have several; leave one out"
            )
        if self.model.frames > 1 and (self.data.synthetic or self.stages.spaces or self._vision_targets):
            raise ValueError(
                "model.frames above 1 needs a folder of clips in data.source, one stage, and adapter.targets without "
                "connector and vision; set model.frames=1, or change these"
            )
        if self.model.frames > 1 and self.data.deduplicate == "drop":
            raise ValueError(
                "data.deduplicate=drop leaves single frames out, so that what one clip holds would depend on another, "
                "which the unit record does not cover; set data.deduplicate=refuse or keep"
            )
        check_work(self)
        check_adaptive_clipping(self)
        check_stages(self)
        if self.model.quantization == "int8" and self.privacy.unit in ("record", "person"):
            raise ValueError(
                f"model.quantization=int8 is not accepted under privacy.unit={self.privacy.unit}: on CUDA it picks "
                "outlier columns over the whole batch, so that one record changes the gradients of others and "
                "clipping bounds nothing; set model.quantization=nf4 or none"
            )
        clients, least = self.federation.clients, self.federation.min_survivors
        dropout, stragglers = self.dropout, self.simulation.stragglers
        expected = clients * (1 - dropout)
        if expected < least:
            raise ValueError(
                f"with simulation.dropout={dropout:g} only {expected:.1f} of {clients} clients are expected to "
                f"survive a round, fewer than the {least} that it needs; lower simulation.dropout or add clients"
            )
        if stragglers and (self.local_steps < 2 or not self.sums_updates):
            raise ValueError(
                f"simulation.stragglers={stragglers:g} lets clients do part of several local "
                "steps, and there is only one; set federation.local_steps above 1 or leave it out"
            )
        most = min(2 * default_min_survivors(clients) - clients, least) - 1
        if self.privacy.max_colluders > most:
            raise ValueError(
                f"privacy.max_colluders={self.privacy.max_colluders} is too many for {clients} clients: with more "
                f"than {most} the survivor set can be forged or no honest noise may be left; lower it or add clients"
            )
        if self.adapter.head == "text" and (self.stages.spaces or self._vision_targets):
            raise ValueError(
                "adapter.head=text reads one prompt with the frozen model: it takes no stages, and neither connector "
                "nor vision in adapter.targets; set adapter.head=linear, or change these"
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
                    f"privacy.delta={self.privacy.delta:g} is not below one over the {records} private records, which "
                    f"would allow one record to be published whole; set privacy.delta below {1 / records:.2g}"
                )
        return self


def stage_config(config: Config, place: int) -> Config:
    """Return one stage's settings, as those of a run of its own."""
    space, rounds = config.stages.spaces[place], config.stage_rounds[place]
    return config.model_copy(
        update={
            "stages": runs.StagesConfig(),
            "data": config.data.model_copy(update={"labels": space}),
            "adapter": config.adapter.model_copy(update={"warm_start": "none", "head": config.head}),
            "privacy": config.privacy.model_copy(update={"mechanism": "independent"}),
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
    rounds = config.stage_rounds
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
            "under adapter.train=alternate a fresh adapter must begin in an odd round, with B, as A learns nothing "
            "while B is zero; give every stage but the last an even number in stages.rounds"
        )


def check_adaptive_clipping(config: Config) -> None:
    """Raise `ValueError` with what to change where the clipping norm cannot follow a quantile."""
    privacy, train = config.privacy, config.adapter.train
    checks = (
        (privacy.unit == "none", "privacy.unit=none, which clips nothing", "privacy.unit=record"),
        (privacy.trust == "none", "privacy.trust=none, where clients take noisy steps alone", "privacy.trust=secagg"),
        (privacy.normalise, "privacy.normalise=true, which clips nothing", "privacy.normalise=false"),
        (privacy.records_per_person is not None, "records counted per person", "privacy.records_per_person=null"),
        (train == "alternate", "adapter.train=alternate, whose halves have norms of their own", "adapter.train=B"),
        (bool(config.stages.spaces), "stages", "stages.spaces=[]"),
        (config.federation.aggregator == "feddyn", "federation.aggregator=feddyn", "federation.aggregator=fedprox"),
    )
    for applies, what, instead in checks:
        if applies and privacy.target_unclipped_quantile is not None:
            raise ValueError(
                f"privacy.target_unclipped_quantile cannot be used with {what}; set {instead}, or leave it out"
            )


def check_work(config: Config) -> None:
    """Raise `ValueError` where privacy, federation and adapter contradict each other."""
    privacy, federation, adapter = config.privacy, config.federation, config.adapter
    unit, trust, rule = privacy.unit, privacy.trust, federation.aggregator
    if trust == "none" and unit != "record":
        raise ValueError(
            f"privacy.trust=none adds noise for single records, and privacy.unit is {unit}; set "
            + (
                "privacy.trust=secagg, which also applies without privacy"
                if unit == "none"
                else "privacy.unit=record or privacy.trust=secagg"
            )
        )
    if privacy.records_per_person is not None and unit != "person":
        raise ValueError(
            "privacy.records_per_person has no effect under "
            f"privacy.unit={unit}; set privacy.unit=person or leave it out"
        )
    if privacy.mechanism == "banded" and config.rules_out_bands:
        raise ValueError(
            f"privacy.mechanism=banded cannot be used with {config.rules_out_bands}: it correlates the noise of sums "
            "of single records over several rounds; set privacy.mechanism=independent"
        )
    if privacy.bands != "auto":
        if privacy.mechanism != "banded":
            raise ValueError(f"privacy.bands={privacy.bands} has no effect without privacy.mechanism=banded")
        rate = config.with_sample_rate().sample_rate  # resolved under auto so that the bands fit
        if (most := min(federation.rounds, int((1 + 1e-12) / rate))) < privacy.bands:
            raise ValueError(f"privacy.bands={privacy.bands} is above {most}, the lower of rounds and 1 / sample_rate")
    updates, steps = config.sums_updates, config.local_steps
    if not updates and steps > 1:
        raise ValueError(
            f"federation.local_steps={steps} needs updates that are private by themselves or as a whole, and "
            f"privacy.unit={unit} under secure aggregation releases one sum of gradients in a round; set "
            "federation.local_steps=1, privacy.trust=none or privacy.unit=client"
        )
    if federation.local_rule != "sgd" and (not updates or trust == "none"):
        raise ValueError(
            f"federation.local_rule={federation.local_rule} needs local steps outside privacy.trust=none, whose noise "
            "is computed for sgd; set federation.local_rule=sgd, or privacy.unit=client"
        )
    if rule in _LOCAL_OBJECTIVES and not updates:
        raise ValueError(
            f"federation.aggregator={rule} modifies the local objective, and here a round is one sum of gradients at "
            "the global adapter, without local steps; set federation.aggregator=fedavg or fedadam, or "
            "privacy.trust=none, or privacy.unit=client"
            + (", or federation.local_steps above 1" if unit == "none" else "")
        )
    if rule == "fedprox" and steps == 1:
        raise ValueError(
            "federation.aggregator=fedprox has an effect from the second local step on; set "
            "federation.local_steps above 1"
        )
    if updates and adapter.train == "both":
        raise ValueError(
            "adapter.train=both cannot be used with updates of several clients: the mean of A times the mean of B is "
            "not the mean of their products; set adapter.train=B or adapter.train=alternate"
        )
    if updates and adapter.head not in ("auto", "none"):
        raise ValueError(
            f"adapter.head={adapter.head} is trained by sums of gradients, and here clients release updates of local "
            "steps, whose rate does not fit it; set adapter.head=none"
        )
    if rule == "feddyn":
        if adapter.train != "B":
            raise ValueError(
                "federation.aggregator=feddyn keeps one correction per client and cannot alternate "
                "matrices; set adapter.train=B"
            )
        if unit == "client" and privacy.normalise:
            raise ValueError(
                "federation.aggregator=feddyn needs updates at their true length, and privacy.normalise=true scales "
                "them to the clipping norm; set privacy.normalise=false"
            )
    pull = {"fedprox": federation.proximal_mu, "feddyn": federation.feddyn_alpha}.get(rule, 0.0)
    rate = config.local_lr
    if rate * pull >= 1:
        raise ValueError(
            f"a local step of federation.local_lr={rate:g} with a penalty of {pull:g} "
            "overshoots the global adapter; lower federation.local_lr, federation.proximal_mu or "
            "federation.feddyn_alpha so that their product is below 1"
        )
    if federation.noise_correction and (rule != "fedadam" or unit == "none"):
        raise ValueError(
            "federation.noise_correction subtracts the noise of a private sum from Adam's second moment; set "
            "federation.aggregator=fedadam and a privacy.unit other than none, or leave it out"
        )
