"""What the parties of a committee round sign, commit to and derive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from carefl_secure.secagg.primitives.crypto import Buffer, derive, digest, pack

MEMBER_KEY = b"member key"
SUBMISSION = b"submission"
OPENING = b"openable set"
MEMBER_ANSWER = b"member answer"
LOSS = b"lost members"
SEED_SHARES = b"seed shares"


def member_key(context: bytes, member: int, public: bytes) -> tuple[bytes, ...]:
    """Return the fields a member signs when it announces its key."""
    return context, pack(member), public


def hash_messages(context: bytes, messages: Mapping[int, bytes]) -> bytes:
    """Hash the announcements of all members: what was sealed for others opens nowhere else."""
    return digest(b"committee transcript hash", context, *(messages[member] for member in sorted(messages)))


def envelope_info(context: bytes, transcript_hash: bytes, client: int, member: int) -> bytes:
    """Return what an envelope is bound to: the round, the announced keys, its two ends."""
    return digest(b"envelope", context, transcript_hash, pack(client, member))


def commitment(context: bytes, transcript_hash: bytes, client: int, member: int, seed: Buffer) -> bytes:
    """Commit to a seed; hiding because it has 256 bits."""
    return digest(b"seed commitment", context, transcript_hash, pack(client, member), seed)


def mask_key(context: bytes, transcript_hash: bytes, client: int, member: int, seed: Buffer) -> bytes:
    """Derive the key of the mask that one member can take off one client's vector."""
    return derive(seed, b"member mask", context, transcript_hash, pack(client, member))


def submission(
    context: bytes,
    transcript_hash: bytes,
    client: int,
    words: bytes,
    commitments: Iterable[bytes],
    envelopes: Iterable[bytes],
) -> tuple[bytes, ...]:
    """Return the fields a client signs: digests of its masked vector and of every envelope."""
    return context, transcript_hash, pack(client), words, b"".join(commitments), b"".join(envelopes)


def client_list(context: bytes, transcript_hash: bytes, entries: Iterable[tuple[bytes, ...]]) -> bytes:
    """Hash the signed fields of all clients on a list, ascending."""
    return digest(b"client list", context, transcript_hash, *(digest(SUBMISSION, *fields) for fields in entries))


def outcome(context: bytes, transcript_hash: bytes, openings: Mapping[int, bytes]) -> bytes:
    """Hash the members' openings: they fix the list, who is left out and who was there."""
    return digest(b"outcome", context, transcript_hash, *(openings[member] for member in sorted(openings)))
