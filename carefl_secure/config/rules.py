"""Local training: which settings are compatible, and what ``auto`` resolves to."""

from __future__ import annotations

from carefl_secure.config.sections import AdapterConfig, FederationConfig, PrivacyConfig

_LR = 0.03
_STEPS = 10
_NOISY_STEPS = 5
_LOCAL_LR = 10.0  # plain gradients of a mean loss over many labels are small
_DYNAMIC_LOCAL_LR = 3.0  # FedDyn also adds its correction
_NOISY_LOCAL_LR = 0.3
_LOCAL_OBJECTIVES = ("fedprox", "feddyn")


def updates_are_summed(privacy: PrivacyConfig, federation: FederationConfig) -> bool:
    """Return whether clients take local steps and release updates.

    Always under unit client and trust none, whose noise is sized for it; never for records and
    persons under the secure sum; and without privacy where there is more than one local step.
    """
    if privacy.unit == "none":
        return local_steps(privacy, federation) > 1
    return privacy.unit == "client" or privacy.trust == "none"


def local_steps(privacy: PrivacyConfig, federation: FederationConfig) -> int:
    """Return ``federation.local_steps`` as a number."""
    given = federation.local_steps
    if given != "auto":
        return given
    unit, modified = privacy.unit, federation.aggregator in _LOCAL_OBJECTIVES
    if unit == "client" or (unit == "none" and modified):
        return _STEPS
    return _NOISY_STEPS if unit == "record" and privacy.trust == "none" else 1


def local_lr(privacy: PrivacyConfig, federation: FederationConfig) -> float:
    """Return ``federation.local_lr`` as a number."""
    given = federation.local_lr
    if given != "auto":
        return given
    if privacy.trust == "none":
        return _NOISY_LOCAL_LR
    return _DYNAMIC_LOCAL_LR if federation.aggregator == "feddyn" else _LOCAL_LR


def server_lr(privacy: PrivacyConfig, federation: FederationConfig) -> float:
    """Return ``federation.server_lr`` as a number."""
    if federation.server_lr != "auto":
        return federation.server_lr
    if not updates_are_summed(privacy, federation) or federation.aggregator == "fedadam":
        return _LR
    # Heavy-ball momentum m multiplies a steady update by 1 / (1 - m).
    return 1.0 - federation.momentum if federation.aggregator == "fedavg" else 1.0


def check_work(privacy: PrivacyConfig, federation: FederationConfig, adapter: AdapterConfig) -> None:
    """Raise `ValueError` where privacy, federation and adapter contradict each other."""
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
    updates = updates_are_summed(privacy, federation)
    steps = local_steps(privacy, federation)
    if not updates and steps > 1:
        raise ValueError(
            f"federation.local_steps={steps} needs updates that are private by themselves or as a "
            f"whole, and privacy.unit={unit} under secure aggregation releases one sum of "
            "gradients in a round; set federation.local_steps=1, privacy.trust=none or "
            "privacy.unit=client"
        )
    if federation.local_rule != "sgd" and (not updates or trust == "none"):
        raise ValueError(
            f"federation.local_rule={federation.local_rule} needs local steps outside "
            "privacy.trust=none, whose noise is computed for sgd; set federation.local_rule=sgd, "
            "or privacy.unit=client"
        )
    if rule in _LOCAL_OBJECTIVES and not updates:
        raise ValueError(
            f"federation.aggregator={rule} modifies the local objective, and here a round is one "
            "sum "
            "of gradients at the global adapter, without local steps; set "
            "federation.aggregator=fedavg or fedadam, or privacy.trust=none, or privacy.unit=client"
            + (", or federation.local_steps above 1" if unit == "none" else "")
        )
    if rule == "fedprox" and steps == 1:
        raise ValueError(
            "federation.aggregator=fedprox has an effect from the second local step on; set "
            "federation.local_steps above 1"
        )
    if updates and adapter.train == "both":
        raise ValueError(
            "adapter.train=both cannot be used with updates of several clients: the mean of A "
            "times the mean of B is not the mean of their products; set adapter.train=B or "
            "adapter.train=alternate"
        )
    if rule == "feddyn":
        if adapter.train != "B":
            raise ValueError(
                "federation.aggregator=feddyn keeps one correction per client and cannot alternate "
                "matrices; set adapter.train=B"
            )
        if unit == "client" and privacy.normalise:
            raise ValueError(
                "federation.aggregator=feddyn needs updates at their true length, and "
                "privacy.normalise=true scales them to the clipping norm; set "
                "privacy.normalise=false"
            )
    pull = {"fedprox": federation.proximal_mu, "feddyn": federation.feddyn_alpha}.get(rule, 0.0)
    rate = local_lr(privacy, federation)
    if rate * pull >= 1:
        raise ValueError(
            f"a local step of federation.local_lr={rate:g} with a penalty of {pull:g} "
            "overshoots the global adapter; lower federation.local_lr, federation.proximal_mu or "
            "federation.feddyn_alpha so that their product is below 1"
        )
    if federation.noise_correction and (rule != "fedadam" or unit == "none"):
        raise ValueError(
            "federation.noise_correction subtracts the noise of a private sum from Adam's second "
            "moment; set federation.aggregator=fedadam and a privacy.unit other than none, or "
            "leave it out"
        )
