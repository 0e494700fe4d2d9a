"""The registry of aggregation protocols, and those that other packages register."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

from carefl_secure.errors import ConfigError
from carefl_secure.federation.aggregation import registry
from carefl_secure.federation.aggregation.pairwise import Pairwise


class Foreign(Pairwise):
    """A protocol of another package."""

    name: ClassVar[str] = "foreign"


def offer(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    """Let packages register the protocol ``foreign`` under these values."""
    points = [EntryPoint("foreign", value, registry.GROUP) for value in values]
    monkeypatch.setattr("carefl_secure.extensions.entry_points", lambda group: points)
    registry.find_protocol.cache_clear()


def test_the_protocols_of_the_package() -> None:
    assert sorted(registry.PROTOCOLS) == ["committee", "encrypted", "pairwise"]
    for name, protocol in registry.PROTOCOLS.items():
        assert registry.find_protocol(name) is protocol
    assert [registry.PROTOCOLS[n].helpers(3) for n in sorted(registry.PROTOCOLS)] == [3, 1, 0]


def test_a_protocol_of_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, f"{__name__}:Foreign")
    assert type(registry.find_protocol("foreign")) is Foreign


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((), r"federation.aggregation is 'foreign', which is unknown; choose one of committee, encrypted"),
        ((f"{__name__}:Foreign", "other:Foreign"), r"several packages bring .*uninstall"),
        (("no_such_module:Foreign",), r"brought by no_such_module:Foreign, which cannot be imported"),
        ((f"{__name__}:Missing",), r"which cannot be imported"),
        ((f"{__name__}:offer",), r"is no aggregation protocol named 'foreign'"),
        (("carefl_secure.federation.aggregation.pairwise:Pairwise",), r"is no aggregation protocol named 'foreign'"),
    ],
)
def test_what_cannot_be_loaded_is_refused(monkeypatch: pytest.MonkeyPatch, values: tuple[str, ...], text: str) -> None:
    offer(monkeypatch, *values)
    with pytest.raises(ConfigError, match=text):
        registry.find_protocol("foreign")
