"""A party's own keys: made where they are used, and never anywhere else; ``NAME.pub.json`` is the public half."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, StringConstraints, TypeAdapter
from pydantic.dataclasses import dataclass

from carefl_secure.deployment.provisioning.certificates import write_private
from carefl_secure.deployment.provisioning.documents import STRICT, PublicKey, read_json
from carefl_secure.errors import ConfigError, RunError

_NAME = r"[A-Za-z0-9_-]+"
Name = Annotated[str, StringConstraints(pattern=f"^{_NAME}$")]
"""A party's name, which is also the name of its folder."""

PartyRole = Literal["client", "helper", "submitter"]
"""Whether a party has records, helps to sum (a committee member or key holder), or submits runs."""

SUPERNODE = "supernode"
"""The folder, within a site's own, of what its SuperNode needs; it holds no key of the agent."""

_LABEL = b"carefl public half\x00"
_ECDSA = ec.ECDSA(hashes.SHA384())
_PEM, _PRIVATE = serialization.Encoding.PEM, serialization.PrivateFormat
_PLAIN = serialization.NoEncryption()
_IDENTITY: dict[PartyRole, str] = {"client": "identity.key", "helper": "identity.key", "submitter": "submit.key"}


def fingerprint(public: bytes) -> str:
    """Return SHA-256 of public data in hexadecimal, in groups that can be read aloud."""
    text = hashlib.sha256(public).hexdigest()
    return "-".join(text[i : i + 8] for i in range(0, 64, 8))


def plain_fingerprint(text: str) -> str:
    """Return a typed fingerprint as 64 digits; `ConfigError` when it is not one."""
    plain = re.sub(r"[\s:-]", "", text).lower()
    if not re.fullmatch(r"[0-9a-f]{64}", plain):
        raise ConfigError(f"{text!r} is no fingerprint: it has 64 hexadecimal digits in 8 groups")
    return plain


@dataclass(frozen=True, config=STRICT)
class PublicHalf:
    """What a party hands out.

    ``identity`` is its Ed25519 key and ``node`` its SuperNode's key in OpenSSH format, empty for a
    submitter. Each key signs all of ``name``, ``role``, ``identity`` and ``node``.

    Guarantees
    ----------
    `read` returns a half only if whoever made it holds both private keys and signed this name and
    role with them. It cannot tell who that is: for this, fingerprints are compared.
    """

    name: Name
    role: PartyRole
    identity: PublicKey
    node: str
    signature: Annotated[bytes, Field(min_length=64, max_length=64)]
    node_signature: bytes

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the identity key."""
        return fingerprint(self.identity)

    @classmethod
    def read(cls, path: Path) -> PublicHalf:
        """Read a ``.pub.json`` file; `RunError` when it is missing, damaged or wrongly signed."""
        half = read_json(path, cls, RunError, "ask its owner for the public half again")
        said = _statement(half.name, half.role, half.identity, half.node)
        try:
            Ed25519PublicKey.from_public_bytes(half.identity).verify(half.signature, said)
            if half.role != "submitter":
                node = serialization.load_ssh_public_key(half.node.encode())
                if not isinstance(node, ec.EllipticCurvePublicKey):
                    raise ValueError("the node key is not an elliptic curve key")
                node.verify(half.node_signature, said, _ECDSA)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
            raise RunError(
                f"{path} is not signed by the keys in it; ask its owner for the public half again, "
                "and compare the fingerprint"
            ) from error
        return half


def make_keys(home: Path, name: str, role: PartyRole) -> PublicHalf:
    """Make a party's keys in a folder that has none, and return the public half.

    Raises `ConfigError` for a name with other characters than letters, digits, ``_`` and ``-``,
    and `RunError` when the folder has keys already or cannot be written.

    Guarantees
    ----------
    Private keys are written once, to files that only their owner can read. ``NAME.pub.json`` and
    what this function returns hold none of them.
    """
    if not re.fullmatch(_NAME, name):
        raise ConfigError(f"{name!r} is no name; use letters, digits, _ and - (--name NAME)")
    try:
        home.mkdir(parents=True, mode=0o700, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make {home}: {error.strerror}; choose another folder") from error
    own, node_public, node_signature = Ed25519PrivateKey.generate(), "", b""
    identity = own.public_key().public_bytes_raw()
    write_private(home / _IDENTITY[role], own.private_bytes(_PEM, _PRIVATE.PKCS8, _PLAIN))
    if role != "submitter":
        node = ec.generate_private_key(ec.SECP384R1())  # as Flower asks
        (home / SUPERNODE).mkdir(mode=0o700, exist_ok=True)
        write_private(home / SUPERNODE / "node.key", node.private_bytes(_PEM, _PRIVATE.OpenSSH, _PLAIN))
        form = serialization.PublicFormat.OpenSSH
        node_public = node.public_key().public_bytes(serialization.Encoding.OpenSSH, form).decode()
        node_signature = node.sign(_statement(name, role, identity, node_public), _ECDSA)
    signature = own.sign(_statement(name, role, identity, node_public))
    half = PublicHalf(name, role, identity, node_public, signature, node_signature)
    (home / f"{name}.pub.json").write_text(TypeAdapter(PublicHalf).dump_json(half, indent=2).decode() + "\n")
    return half


def own_half(home: Path) -> PublicHalf:
    """Return the public half of a party's own folder; `RunError` when there is not exactly one."""
    found = sorted(home.glob("*.pub.json"))
    if len(found) != 1:
        raise RunError(
            f"{home} holds {len(found)} public halves instead of one; make keys there first: carefl-secure site init"
        )
    return PublicHalf.read(found[0])


def replace_keys(home: Path) -> PublicHalf:
    """Replace a party's keys, erasing the old, for a new roster; other files stay. `RunError` when there are none."""
    old = own_half(home)
    for name in (_IDENTITY[old.role], f"{SUPERNODE}/node.key"):
        (home / name).unlink(missing_ok=True)
    return make_keys(home, old.name, old.role)


def restore_state(home: Path, backup: Path) -> None:
    """Copy ledgers, accepted run and policy of a site from a backup of its folder; `RunError` when it has none."""
    try:
        shutil.copytree(backup / "ledgers", home / "ledgers")
        for name in ("accepted.json", "policy.yaml"):
            if (backup / name).exists():
                shutil.copy(backup / name, home / name)
    except OSError as error:
        raise RunError(
            f"cannot copy from {backup}: {error}; name the backup of a site's folder, and a new folder"
        ) from error


def _statement(name: str, role: str, identity: bytes, node: str) -> bytes:
    about = {"name": name, "role": role, "identity": identity.hex(), "node": node}
    return _LABEL + json.dumps(about, sort_keys=True).encode()
