"""An entry for OpenDP's registry of deployments, at its tier 3."""

from __future__ import annotations

import yaml

from carefl_secure.report.schema import Report
from carefl_secure.rounding import percent_up, round_up

_OPEN = "To be stated by whoever publishes the adapter."


def registry_entry(report: Report) -> str:
    """Return the entry as YAML: a draft that names what a run folder cannot know.

    References
    ----------
    Schema of the OpenDP deployments registry (``schemas/deployments-schema.yaml``, after research
    by Ghazi, Nanayakkara and Vadhan), in the layout of its entries of September 2026.
    """
    name = f"carefl-secure-{report.run.id}".lower()
    entry = {
        "url_slug": "".join(c if c.isalnum() and c.isascii() else "-" for c in name).strip("-"),
        "status": "Draft",
        "tier": 3,
        "deployment": {
            "basic": _basic(report),
            "dp_variant": {
                "variant_name": "Approximate DP" if report.verdict == "accounted" else "Custom",
                "data_domain": (
                    "Sets of image-person records with labels, held by "
                    f"{report.trust.clients} clients: {report.run.data}."
                ),
                "unprotected_quantities": _list(*report.promise.not_protected),
            },
            "privacy_loss": _loss(report),
            "deployment_model": {
                "model_name": "Federated",
                "model_name_details": report.trust.setting,
                "actors": _list(
                    *(f"{who}: sees {what}" for who, what in report.trust.sees.items()),
                    f"at most {report.trust.max_colluders} clients may collude with the server; a sum is opened over "
                    f"at least {report.trust.min_survivors} of {report.trust.clients}",
                ),
                "release_type": "One release",
                "release_type_details": (
                    "One adapter after all rounds; the sum of every round is released to the "
                    "server during the run and is accounted for. Clients keep ledgers across runs."
                ),
                "data_source_type": "Static",
                "access_type": "Non-interactive",
                "access_type_details": "The adapter is distributed; the records are not queried.",
            },
            "accounting": {
                "post_processing": ("The server's optimiser, and scores on public images, use released sums only."),
                "composition": f"{report.accounting.composition}. {report.accounting.accountant}.",
            },
            "implementation": _implementation(report),
            "administrative": {
                "sources": f"Privacy report {report.format}, plan {report.plan_sha256}",
                "registry_authors": ["carefl-secure report"],
            },
        },
    }
    return yaml.dump(entry, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, as the registry's own entries do."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _basic(report: Report) -> dict[str, object]:
    return {
        "name": f"Adapter of run {report.run.id}",
        "data_curators": [{"data_curator_name": _OPEN, "data_curator_type": _OPEN}],
        "intended_use": _OPEN,
        "data_product_type": "Machine learning model",
        "data_product_region": _OPEN,
        "description": (
            f"A low-rank adapter of the vision-language model {report.run.base_model}, trained by "
            f"{report.trust.clients} clients in {report.run.rounds_released} rounds. " + report.promise.sentence
        ),
        "publication_date": report.run.last_entry[:10],
    }


def _loss(report: Report) -> dict[str, object]:
    price, delta = report.promise.epsilon, report.promise.delta
    loss: dict[str, object] = {
        "privacy_unit": {"record": "Record-level", "person": "Person-level", "client": "Client-level", "none": "None"}[
            report.unit.kind
        ],
        "privacy_unit_details": (
            f"Unit: {report.unit.definition}. Two data sets are neighbours if one has one unit "
            "more than the other (symmetric distance 1)."
        ),
        "privacy_parameters": {},
    }
    if price is not None and delta is not None:
        loss["privacy_parameters"] = {"epsilon": float(round_up(price)), "delta": delta}
        details = f"Over all rounds; {report.promise.strength}. "
        if (found := report.attacker) is not None:
            details += (
                f"{found.sentence} At 0.1 %: {percent_up(found.tpr_at_0_1_percent_fpr)}. Membership advantage at most "
                f"{round_up(found.advantage)}."
            )
        loss["privacy_parameters_details"] = details
    else:
        loss["privacy_parameters_details"] = " ".join([report.promise.sentence, *report.reasons])
    return loss


def _implementation(report: Report) -> dict[str, object]:
    mechanism = report.mechanism
    failed = [check for check in report.checks if check.outcome != "held"]
    return {
        "preprocessing_and_hyperparameter_tuning": report.tuning.sentence,
        "mechanisms": _list(
            mechanism.name,
            f"noise multiplier {mechanism.noise_multiplier:.6g}, clipping norm {mechanism.clipping_norm:g}, Poisson "
            f"sampling at {mechanism.sample_rate:g}, {mechanism.count} sums",
            f"noise from {mechanism.noise_source}",
            f"divisor: {mechanism.normaliser}",
            *(f"{name} {version}" for name, version in report.software.items()),
            *(f"{caveat.severity}: {caveat.text}" for caveat in report.caveats),
        ),
        "justification": _list(
            "The noise was computed for the agreed epsilon and number of rounds before the first "
            "round, from the norms of the integer encoding.",
            f"{len(report.checks) - len(failed)} checks of the run folder held.",
            *(f"{check.text}: {check.outcome}. {check.detail}" for check in failed),
        ),
    }


def _list(*lines: str) -> str:
    return "".join(f"- {line}\n" for line in lines)
