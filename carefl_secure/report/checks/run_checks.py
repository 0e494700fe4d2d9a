"""What can be checked from a run folder alone; any failure makes the report void."""

from __future__ import annotations

from collections.abc import Callable

from carefl_secure.report.audit import judge_audits
from carefl_secure.report.checks import ledger as ledgers
from carefl_secure.report.checks import privacy_statement as promise
from carefl_secure.report.run_record import RunRecord
from carefl_secure.report.schema import UNCHECKED, CheckLine, Finding
from carefl_secure.report.spending import Accounts

_Find = Callable[[RunRecord, Accounts], Finding]
_UNSEEN = "sampling leaves no trace in the folder; an audit of the client tests it"

_ALWAYS: tuple[tuple[str, str, _Find], ...] = (
    ("ledger_chains", "No ledger entry was changed, added or removed", ledgers.chains),
    ("plan_kept", "The plan is the one that the run was started with", ledgers.plan_kept),
    ("releases_paid", "Every released round was charged first", ledgers.releases_paid),
    ("clients_paid", "Every client that was summed had charged its ledger", ledgers.clients_paid),
    ("rounds_planned", "No more rounds were charged than planned", ledgers.rounds_planned),
    ("audit", "No audit of the run falsified its promise", lambda record, _: judge_audits(record.audit)),
    ("min_survivors", "Every opened sum is over min_survivors clients or more", ledgers.min_survivors),
)
_PROTECTED: tuple[tuple[str, str, _Find], ...] = (
    ("encoding", "The integer encoding carries the planned noise and norms", promise.encoding),
    ("events", "The events charged are those of the plan", promise.events),
    ("target", "All rounds stay within the agreed epsilon", promise.target),
    ("claims", "The run claimed no less epsilon than its ledger shows", promise.claims),
    ("noise", "The opened sums are as noisy as the plan says", promise.noise),
    ("keys", "Noise and keys come from the operating system's entropy", promise.keys),
    ("sampler", "Records are Poisson sampled, and the sample stays secret", lambda *_: (UNCHECKED, _UNSEEN)),
)


def check_run(record: RunRecord, accounts: Accounts) -> list[CheckLine]:
    """Check a run.

    Guarantees
    ----------
    A run that kept its plan fails with a probability below 1e-6. There is no converse: whoever can
    write to the folder can forge a run that passes.
    """
    wanted = _ALWAYS if record.privacy.unit == "none" else _ALWAYS + _PROTECTED
    found = ((name, text, find(record, accounts)) for name, text, find in wanted)
    return [CheckLine(name=name, text=text, outcome=outcome, detail=detail) for name, text, (outcome, detail) in found]
