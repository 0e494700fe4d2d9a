"""Rounds of a private federated run on Flower; the only room that imports flwr."""

from carefl_secure.federation._flwr_env import quiet_flower
from carefl_secure.federation.client import build_client_app
from carefl_secure.federation.cohort import Aggregation, Cohort
from carefl_secure.federation.folder import RunFolder
from carefl_secure.federation.grid import LocalGrid
from carefl_secure.federation.helpers import HolderSession, MemberSession
from carefl_secure.federation.optim import FedAdam, FedAvg, ServerOptimizer
from carefl_secure.federation.planning import RunPlan, plan_run
from carefl_secure.federation.rounds import FederationResult, run_federation
from carefl_secure.federation.session import ClientSession
from carefl_secure.federation.strategy import SecureSumStrategy
from carefl_secure.federation.task import LocalTask

__all__ = [
    "Aggregation",
    "ClientSession",
    "Cohort",
    "FedAdam",
    "FedAvg",
    "FederationResult",
    "HolderSession",
    "LocalGrid",
    "LocalTask",
    "MemberSession",
    "RunFolder",
    "RunPlan",
    "SecureSumStrategy",
    "ServerOptimizer",
    "build_client_app",
    "plan_run",
    "quiet_flower",
    "run_federation",
]
