"""The shape of a threat model: one adversary, what it sees, and what stands in its way."""

from __future__ import annotations

from typing import Literal

from carefl_secure.config.sections import Section

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
ATTACK_NAMES = (
    "conformance",
    "server-view",
    "helper-view",
    "canaries",
    "client-canaries",
    "reconstruction",
    "images",
    "membership",
    "exposure",
    "attributes",
)
"""In the order in which an audit runs them; a test holds this against the attacks themselves."""


class Threat(Section):
    """One thing that the adversary may try.

    ``id`` is unique within its model, ``text`` says in one or two sentences what it tries. ``stride`` and ``linddun``
    hold letters of :data:`STRIDE` and :data:`LINDDUN`, ``atlas`` ids of MITRE ATLAS, ``nist`` terms of NIST AI 100-2.
    ``mitigation`` is what stands in its way, or what one could do where nothing does; ``keys`` are the settings that
    switch or size it. ``tests``, as ``tests/.../test_file.py::test_name``, fail where it breaks; ``attacks`` of
    ``carefl-secure audit`` measure what is left; ``residual`` is the risk that remains.
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

    ``position`` is where it stands in the picture of a round, ``assets`` what it is after, ``sees`` what it observes,
    ``can`` what it is able to do, and ``collusion`` with how many others the defences still hold.
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
