"""Secure sums: masks, shares, signatures, ciphertexts. Bytes in, bytes out."""

from carefl_secure.secagg.additive import AdditiveClient, AdditiveServer
from carefl_secure.secagg.additive_parameters import AdditiveParameters
from carefl_secure.secagg.ahead import AheadCommitteeParameters, AheadParameters
from carefl_secure.secagg.ckks_round import CkksClient, CkksKeyHolder, CkksParameters, CkksServer
from carefl_secure.secagg.client import PeerClient
from carefl_secure.secagg.committee_client import CommitteeClient
from carefl_secure.secagg.committee_member import CommitteeMember
from carefl_secure.secagg.committee_parameters import CommitteeParameters
from carefl_secure.secagg.committee_rehearsal import CommitteeRehearsal
from carefl_secure.secagg.committee_server import CommitteeServer
from carefl_secure.secagg.encoding import EncodingPlan, decode, encode, wrap
from carefl_secure.secagg.encrypted import EncryptedClient, EncryptedServer
from carefl_secure.secagg.encrypted_parameters import EncryptedParameters, KeyedParameters
from carefl_secure.secagg.graph_plan import GraphPlan, plan_graph
from carefl_secure.secagg.key_holder import KeyHolder
from carefl_secure.secagg.parameters import RoundParameters, default_threshold
from carefl_secure.secagg.planner import plan_clients, plan_plain, plan_records
from carefl_secure.secagg.rehearsal import Rehearsal
from carefl_secure.secagg.server import PeerServer
from carefl_secure.secagg.state import Phase
from carefl_secure.secagg.wire import sender

__all__ = [
    "AdditiveClient",
    "AdditiveParameters",
    "AdditiveServer",
    "AheadCommitteeParameters",
    "AheadParameters",
    "CkksClient",
    "CkksKeyHolder",
    "CkksParameters",
    "CkksServer",
    "CommitteeClient",
    "CommitteeMember",
    "CommitteeParameters",
    "CommitteeRehearsal",
    "CommitteeServer",
    "EncodingPlan",
    "EncryptedClient",
    "EncryptedParameters",
    "EncryptedServer",
    "GraphPlan",
    "KeyHolder",
    "KeyedParameters",
    "PeerClient",
    "PeerServer",
    "Phase",
    "Rehearsal",
    "RoundParameters",
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
