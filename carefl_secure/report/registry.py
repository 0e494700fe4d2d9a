"""An entry for OpenDP's registry of deployments, at its tier 3."""

from __future__ import annotations

import yaml

from carefl_secure.report.render.page import environment
from carefl_secure.report.schema import Report
from carefl_secure.rounding import round_up


def registry_entry(report: Report) -> str:
    """Return the entry as YAML: a draft that names what a run folder cannot know.

    References
    ----------
    Schema of the OpenDP deployments registry (``schemas/deployments-schema.yaml``, after research
    by Ghazi, Nanayakkara and Vadhan), in the layout of its entries of September 2026.
    """
    name = f"carefl-secure-{report.run.id}".lower()
    slug = "".join(c if c.isalnum() and c.isascii() else "-" for c in name).strip("-")
    template = environment(html=False).get_template("registry.yaml.j2")
    entry = yaml.safe_load(template.render(r=report, slug=slug))
    price, delta = report.promise.epsilon, report.promise.delta
    if price is not None and delta is not None:
        entry["deployment"]["privacy_loss"]["privacy_parameters"] = {"epsilon": float(round_up(price)), "delta": delta}
    return yaml.dump(entry, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, as the registry's own entries do."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
