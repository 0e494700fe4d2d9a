r"""The sampling rate under ``privacy.sample_rate=auto``: large batches for a label head that is trained alone.

Gradients of a head alone cost next to nothing, so a round may draw as many records as do most good. With n records
(persons under unit person) of all clients together the rate is

.. math:: q = \min(q_{\max}, \max(0.2, 1600 / n))

to two significant digits, with :math:`q_{\max}` = 0.5 under privacy, the most that the policy of a new site allows,
and 1 without (``docs/defaults.md``). n is public: it is declared (``federation.public_records``), and only a
simulation counts it. Everywhere else ``auto`` is 0.2.
"""

from __future__ import annotations

from carefl_secure.config import Config
from carefl_secure.config.root import SAMPLE_RATE
from carefl_secure.model.lora import Adapter
from carefl_secure.runs.corpora import Corpora
from carefl_secure.runs.plan_from_config import public_counts

_BATCH = 1600  # expected number of records in a round
_MOST, _MOST_OPEN = 0.5, 1.0  # with and without privacy


def rate_of_head(config: Config, units: int) -> float:
    """Return the rate for a head alone on ``units`` records or persons; no more than ``privacy.bands`` leave room for.

    Any rate keeps the promise: the noise is found for it, and it stands in the plan that all parties check.
    """
    privacy = config.privacy
    most = _MOST_OPEN if privacy.unit == "none" else _MOST
    if privacy.bands != "auto":
        most = min(most, 1 / privacy.bands)
    return float(f"{min(most, max(SAMPLE_RATE, _BATCH / units)):.2g}")


def resolve_sample_rate(config: Config, corpora: Corpora, adapter: Adapter) -> tuple[Config, str]:
    """Return the settings with the sampling rate as a number, and a sentence on it, empty where one was given.

    It is resolved once for a run, by its fitted label head, before anything is planned. All stages of a run share it;
    as no head is trained alone in stages, it is the default there.
    """
    if config.privacy.sample_rate != "auto":
        return config, ""
    head = adapter.head
    if head is None or not head.alone:
        return config.with_sample_rate(), f"sampling rate {SAMPLE_RATE:g}: more than a label head is trained"
    units, _ = public_counts(config, corpora)
    rate, what = rate_of_head(config, units), "persons" if config.privacy.unit == "person" else "records"
    batch = f"about {rate * units:,.0f} of {units:,} {what} in a round"
    return config.with_sample_rate(rate), f"sampling rate {rate:g}, {batch}: only a label head is trained"
