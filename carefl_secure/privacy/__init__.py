"""Sampling, events, accounting, the ledger and the plan; clipping is imported by its full name."""

from carefl_secure.privacy.accounting.accountant import accountant_name, epsilon, rdp_epsilon
from carefl_secure.privacy.accounting.calibration import calibrate_noise
from carefl_secure.privacy.accounting.events import Event, SampledGaussian, SampledSkellam, event_from_json
from carefl_secure.privacy.ledger.entry import Entry
from carefl_secure.privacy.ledger.ledger import Ledger
from carefl_secure.privacy.plan import PrivacyPlan
from carefl_secure.privacy.sampling import poisson_sample
from carefl_secure.privacy.statement import verdict

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
    "poisson_sample",
    "rdp_epsilon",
    "verdict",
]
