"""Commands about privacy: budget, ledger, audit, report, threat-model."""
