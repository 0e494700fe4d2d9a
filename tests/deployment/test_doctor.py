"""The doctor holds what is installed against what the package declares."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from carefl_secure.deployment import doctor
from tests.support.sites import make_bundles


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("flwr", "1.41.0", True),
        ("flwr", "1.42.3", True),
        ("flwr", "1.420.0", False),  # which begins like a version that was tried
        ("flwr", "1.43.0", False),
        ("torch", "2.15.0", False),
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


def site_checks(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, doctor.Check]:
    monkeypatch.setattr(doctor, "CHECKS", {})
    return {one.name: one for one in doctor.examine(bundle)}


def test_a_site_is_told_what_keeps_it_from_taking_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_bundles(tmp_path) / "sites" / "s0"
    ahead = [0.0]
    monkeypatch.setattr(doctor, "probe", lambda address, authority: (True, ahead[0]))
    monkeypatch.setenv("CAREFL_SOCKET", str(tmp_path / "agent.sock"))
    found = site_checks(site, monkeypatch)
    assert list(found) == ["site", "certificates", "policy", "records", "server", "socket"]
    # The bundles of this test hold for one day.
    assert not found["certificates"].ok and "expire in 1.0 days" in found["certificates"].seen


def test_each_fault_of_a_site_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_EXPIRES_SOON", 0.5)
    site = make_bundles(tmp_path, data=str(tmp_path / "images")) / "sites" / "s0"
    place = tmp_path / "agent.sock"
    monkeypatch.setenv("CAREFL_SOCKET", str(place))
    monkeypatch.setattr(doctor, "probe", lambda address, authority: (True, 240.0))
    place.touch(0o666)
    place.chmod(0o666)
    found = site_checks(site, monkeypatch)
    assert found["site"].ok and found["policy"].ok
    assert not found["records"].ok and str(tmp_path / "images") in found["records"].seen
    assert not found["server"].ok and "240 s ahead of" in found["server"].seen
    assert not found["socket"].ok and "every account" in found["socket"].seen
    place.chmod(0o660)
    monkeypatch.setattr(doctor, "probe", lambda address, authority: (False, 0.0))
    found = site_checks(site / "supernode", monkeypatch)
    assert list(found) == ["site", "certificates", "server", "socket"]
    assert found["socket"].ok and "no server behind it" in found["server"].seen
    (site / "supernode" / "node.key").unlink()
    found = site_checks(site / "supernode", monkeypatch)
    assert list(found) == ["site"] and "lacks node.key" in found["site"].seen
