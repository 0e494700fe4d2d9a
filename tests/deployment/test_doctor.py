"""The doctor holds what is installed against what the package declares."""

from __future__ import annotations

import importlib.metadata

import pytest

from carefl_secure.deployment import doctor


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("flwr", "1.41.0", True),
        ("flwr", "1.42.3", True),
        ("flwr", "1.420.0", False),  # which begins like a version that was tried
        ("flwr", "1.43.0", False),
        ("torch", "2.14.0", False),
        ("cryptography", "9.0", False),
    ],
)
def test_versions_are_compared_as_versions(
    monkeypatch: pytest.MonkeyPatch, name: str, version: str, fits: bool
) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda one: version if one == name else real(one))
    if fits:
        assert f"flwr {version}" in doctor.CHECKS["packages"]()
    else:
        with pytest.raises(ArithmeticError, match=rf"{name} {version} is not .*<"):
            doctor.CHECKS["packages"]()


def test_extras_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["numpy>=2", 'no-such-package>=1; extra == "ray"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    monkeypatch.setattr(doctor, "_SHOWN", ("numpy",))
    assert "numpy" in doctor.CHECKS["packages"]()
