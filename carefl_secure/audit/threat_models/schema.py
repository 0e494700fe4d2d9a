"""The shape of a threat model: one adversary, what it sees, and what stands in its way."""

from __future__ import annotations

from typing import Literal

from carefl_secure.config.sections import Section

__all__ = ["ATLAS", "LINDDUN", "NIST", "STRIDE", "Threat", "ThreatModel"]

Stride = Literal["S", "T", "R", "I", "D", "E"]
Linddun = Literal["L", "I", "Nr", "D", "DD", "U", "Nc"]
Atlas = Literal[
    "AML.T0010",
    "AML.T0018",
    "AML.T0020",
    "AML.T0024.000",
    "AML.T0024.001",
    "AML.T0024.002",
    "AML.T0025",
    "AML.T0031",
    "AML.T0035",
    "AML.T0037",
    "AML.T0044",
]
Nist = Literal[
    "availability breakdown",
    "integrity violation",
    "privacy compromise",
    "membership inference",
    "data reconstruction",
    "property inference",
    "model extraction",
    "model poisoning",
    "data poisoning",
    "backdoor poisoning",
    "supply chain attack",
]

STRIDE: dict[str, str] = {
    "S": "spoofing",
    "T": "tampering",
    "R": "repudiation",
    "I": "information disclosure",
    "D": "denial of service",
    "E": "elevation of privilege",
}
LINDDUN: dict[str, str] = {
    "L": "linking",
    "I": "identifying",
    "Nr": "non-repudiation",
    "D": "detecting",
    "DD": "data disclosure",
    "U": "unawareness and unintervenability",
    "Nc": "non-compliance",
}
ATLAS: dict[str, str] = {
    "AML.T0010": "AI supply chain compromise",
    "AML.T0018": "manipulate AI model",
    "AML.T0020": "poison training data",
    "AML.T0024.000": "infer training data membership",
    "AML.T0024.001": "invert AI model",
    "AML.T0024.002": "extract AI model",
    "AML.T0025": "exfiltration via cyber means",
    "AML.T0031": "erode AI model integrity",
    "AML.T0035": "AI artifact collection",
    "AML.T0037": "data from local system",
    "AML.T0044": "full AI model access",
}
"""Names in MITRE ATLAS of the ids in use."""
NIST: tuple[str, ...] = Nist.__args__  # type: ignore[attr-defined]
"""Terms of NIST AI 100-2 in use: goals first, then attacks."""


class Threat(Section):
    """One thing that the adversary may try.

    Parameters
    ----------
    id : str
        Short, unique within its model.
    text : str
        What it tries, in one or two sentences.
    stride, linddun, atlas, nist : tuple of str
        Letters of :data:`STRIDE` and :data:`LINDDUN`; ids of MITRE ATLAS, terms of NIST AI 100-2.
    mitigation : str
        What stands in its way, or what one could do where nothing does.
    keys : tuple of str
        Settings that switch or size the mitigation.
    tests : tuple of str
        ``tests/.../test_file.py::test_name`` that fail where the mitigation breaks.
    attacks : tuple of str
        Attacks of ``carefl-secure audit`` that measure what is left.
    residual : str
        The risk that remains, in plain words.
    """

    id: str
    text: str
    stride: tuple[Stride, ...] = ()
    linddun: tuple[Linddun, ...] = ()
    atlas: tuple[Atlas, ...] = ()
    nist: tuple[Nist, ...] = ()
    defended: Literal["yes", "partly", "no"]
    mitigation: str
    keys: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    residual: str


class ThreatModel(Section):
    """One adversary; ``name`` is that of its file, without the ending.

    ``position`` is where it stands in the picture of a round, ``assets`` what it is after, ``sees``
    what it observes, ``can`` what it is able to do, and ``collusion`` with how many others the
    defences still hold.
    """

    format: Literal["carefl.threat-model/1"]
    name: str
    title: str
    summary: str
    position: Literal["server", "client", "helper", "network", "user", "disk"]
    assets: tuple[str, ...]
    sees: tuple[str, ...]
    can: tuple[str, ...]
    collusion: str
    threats: tuple[Threat, ...]

    @property
    def attacks(self) -> tuple[str, ...]:
        """Every attack that measures one of the threats, each once."""
        return tuple(dict.fromkeys(a for threat in self.threats for a in threat.attacks))
