"""Threat models: their shape, how they are read, and what they name checked against the code."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import yaml

from carefl_secure.config.explain import KNOWN
from carefl_secure.config.load import shipped_folder
from carefl_secure.config.sections.base import Section
from carefl_secure.errors import ConfigError

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


_FOLDER = "threat_models"


def find_models(folder: Path | None = None) -> Path:
    """Return the given folder of threat models, or the one in the package; ConfigError if empty."""
    place = shipped_folder(_FOLDER) if folder is None else folder
    if not any(place.glob("*.yaml")):
        raise ConfigError(f"there are no threat models in {place}; give --dir a folder of *.yaml")
    return place


def load_models(folder: Path) -> tuple[ThreatModel, ...]:
    """Read all threat models of a folder, sorted by name; ConfigError for broken YAML, schema or file name."""
    return tuple(_load(path) for path in sorted(folder.glob("*.yaml")))


def _load(path: Path) -> ThreatModel:
    try:
        model = ThreatModel.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValueError) as error:
        # A failed validation is a ValueError as well.
        raise ConfigError(f"{path.name} is no threat model; correct it: {error}") from error
    if model.name != path.stem:
        raise ConfigError(f"{path.name} calls itself {model.name!r}; give both one name")
    ids = [threat.id for threat in model.threats]
    if len(set(ids)) < len(ids) or not ids:
        raise ConfigError(f"{path.name} needs at least one threat, each with an id of its own")
    return model


def named(models: Sequence[ThreatModel], name: str) -> ThreatModel:
    """Return one model by its name; ConfigError where there is none."""
    for model in models:
        if model.name == name:
            return model
    known = ", ".join(model.name for model in models)
    raise ConfigError(f"there is no threat model {name!r}; there are {known}")


def check_models(models: Sequence[ThreatModel], root: Path) -> list[str]:
    """Return one sentence for each fault of the models, given the source tree ``root``.

    A fault is a test, setting or attack that does not exist, a threat called defended that names no test, or one with
    no classification. Without ``tests/``, as in an installed wheel, ConfigError is raised.
    """
    if not (root / "tests").is_dir():
        raise ConfigError(
            f"{root} holds no tests, so what the threat models name cannot be checked there; run this in a source tree"
        )
    return [f"{m.name}: {fault}" for m in models for fault in _faults(m, root)]


def _faults(model: ThreatModel, root: Path) -> Iterator[str]:
    for threat in model.threats:
        for key in threat.keys:
            if key not in KNOWN:
                yield f"{threat.id} names the setting {key}, which does not exist"
        for attack in threat.attacks:
            if attack not in ATTACK_NAMES:
                yield f"{threat.id} names the attack {attack}, which does not exist"
        for test in threat.tests:
            if not _exists(test, root):
                yield f"{threat.id} names the test {test}, which does not exist"
        if threat.defended != "no" and not threat.tests:
            yield f"{threat.id} is called defended, but no test holds its mitigation"
        if not (threat.stride or threat.linddun):
            yield f"{threat.id} has neither a STRIDE nor a LINDDUN letter"
        if not threat.nist:
            yield f"{threat.id} has no term of NIST AI 100-2"


def _exists(test: str, root: Path) -> bool:
    """Look a test up in the text of its file, without running it."""
    path, _, name = test.partition("::")
    file = root / path
    if not path.startswith("tests/") or not name or not file.is_file():
        return False
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)
