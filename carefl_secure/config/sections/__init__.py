"""The sections of the configuration: one frozen model each."""

from carefl_secure.config.sections.base import Section, Seed
from carefl_secure.config.sections.data import SYNTHETIC_RECORDS, DataConfig
from carefl_secure.config.sections.federation import FederationConfig, survivor_floor
from carefl_secure.config.sections.model import AdapterConfig, ModelConfig
from carefl_secure.config.sections.privacy import PrivacyConfig
from carefl_secure.config.sections.run import EvaluationConfig, RunConfig

__all__ = [
    "SYNTHETIC_RECORDS",
    "AdapterConfig",
    "DataConfig",
    "EvaluationConfig",
    "FederationConfig",
    "ModelConfig",
    "PrivacyConfig",
    "RunConfig",
    "Section",
    "Seed",
    "survivor_floor",
]
