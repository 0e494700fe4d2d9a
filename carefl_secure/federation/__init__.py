"""Rounds of a private federated run on Flower; the only room that imports flwr."""

from carefl_secure.federation.aggregation.helper_session import HolderSession, MemberSession
from carefl_secure.federation.client.app import build_client_app
from carefl_secure.federation.client.session import ClientSession
from carefl_secure.federation.local_update.task import LocalTask
from carefl_secure.federation.plan.aggregation_config import AggregationConfig
from carefl_secure.federation.plan.calibrate import PlanRequest, plan_run
from carefl_secure.federation.plan.cohort import Aggregation, Cohort
from carefl_secure.federation.plan.run_plan import RunPlan
from carefl_secure.federation.run_spec import PerformanceFlags, RunSpec, Simulation
from carefl_secure.federation.server.optimizers import FedAdam, FedAvg, ServerOptimizer
from carefl_secure.federation.server.run import FederationResult, Monitoring, run_federation
from carefl_secure.federation.server.strategy import SecureSumStrategy
from carefl_secure.federation.transport.flwr_env import quiet_flower
from carefl_secure.federation.transport.local_grid import LocalGrid
from carefl_secure.run_folder import RunFolder

__all__ = [
    "Aggregation",
    "AggregationConfig",
    "ClientSession",
    "Cohort",
    "FedAdam",
    "FedAvg",
    "FederationResult",
    "HolderSession",
    "LocalGrid",
    "LocalTask",
    "MemberSession",
    "Monitoring",
    "PerformanceFlags",
    "PlanRequest",
    "RunFolder",
    "RunPlan",
    "RunSpec",
    "SecureSumStrategy",
    "ServerOptimizer",
    "Simulation",
    "build_client_app",
    "plan_run",
    "quiet_flower",
    "run_federation",
]
