"""Sampling, events, accounting, the ledger and the plan; clipping is imported by its full name."""

from carefl_secure.privacy.accounting import (
    accountant_name,
    epsilon,
    pld_epsilon,
    rdp_epsilon,
)
from carefl_secure.privacy.calibration import calibrate_noise
from carefl_secure.privacy.events import Event, SampledGaussian, SampledSkellam, event_from_json
from carefl_secure.privacy.ledger import Entry, Ledger
from carefl_secure.privacy.plan import PrivacyPlan
from carefl_secure.privacy.promise import verdict
from carefl_secure.privacy.sampling import poisson_sample

__all__ = [
    "Entry",
    "Event",
    "Ledger",
    "PrivacyPlan",
    "SampledGaussian",
    "SampledSkellam",
    "accountant_name",
    "calibrate_noise",
    "epsilon",
    "event_from_json",
    "pld_epsilon",
    "poisson_sample",
    "rdp_epsilon",
    "verdict",
]
