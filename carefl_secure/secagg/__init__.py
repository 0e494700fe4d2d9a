"""Secure sums: masks, shares, signatures, ciphertexts. Bytes in, bytes out."""

from carefl_secure.secagg.committee.client import CommitteeClient
from carefl_secure.secagg.committee.member import CommitteeMember
from carefl_secure.secagg.committee.messages import CommitteeParameters
from carefl_secure.secagg.committee.server import CommitteeServer
from carefl_secure.secagg.encoding.planner import plan_clients, plan_plain, plan_records
from carefl_secure.secagg.encoding.quantize import EncodingPlan, decode, encode, wrap
from carefl_secure.secagg.encrypted.bfv_round import EncryptedClient, EncryptedServer, KeyHolder
from carefl_secure.secagg.encrypted.messages import EncryptedParameters
from carefl_secure.secagg.pairwise.client import PairwiseClient
from carefl_secure.secagg.pairwise.graph_planner import GraphPlan, plan_graph
from carefl_secure.secagg.pairwise.messages import RoundParameters, default_threshold
from carefl_secure.secagg.pairwise.server import PairwiseServer
from carefl_secure.secagg.pairwise.state import Phase
from carefl_secure.secagg.primitives.crypto import SenderError
from carefl_secure.secagg.primitives.framing import sender
from carefl_secure.secagg.primitives.phases import ClientSum

__all__ = [
    "ClientSum",
    "CommitteeClient",
    "CommitteeMember",
    "CommitteeParameters",
    "CommitteeServer",
    "EncodingPlan",
    "EncryptedClient",
    "EncryptedParameters",
    "EncryptedServer",
    "GraphPlan",
    "KeyHolder",
    "PairwiseClient",
    "PairwiseServer",
    "Phase",
    "RoundParameters",
    "SenderError",
    "decode",
    "default_threshold",
    "encode",
    "plan_clients",
    "plan_graph",
    "plan_plain",
    "plan_records",
    "sender",
    "wrap",
]
