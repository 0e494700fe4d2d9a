"""The sections of the configuration: one frozen model each."""

from carefl_secure.config.sections.base import Section, Seed
from carefl_secure.config.sections.data import SYNTHETIC_RECORDS, DataConfig
from carefl_secure.config.sections.federation import FederationConfig, default_min_survivors
from carefl_secure.config.sections.model import AdapterConfig, ModelConfig
from carefl_secure.config.sections.privacy import PrivacyConfig
from carefl_secure.config.sections.run import (
    EvaluationConfig,
    PerformanceConfig,
    RunConfig,
    SimulationConfig,
    StagesConfig,
)

__all__ = [
    "SYNTHETIC_RECORDS",
    "AdapterConfig",
    "DataConfig",
    "EvaluationConfig",
    "FederationConfig",
    "ModelConfig",
    "PerformanceConfig",
    "PrivacyConfig",
    "RunConfig",
    "Section",
    "Seed",
    "SimulationConfig",
    "StagesConfig",
    "default_min_survivors",
]
