"""Rounds of a private federated run on Flower: plan, client, aggregation, server, transport."""

# Flower reads these settings when its first part is imported.
from carefl_secure.federation.transport import flwr_env as _flwr_env

__all__: list[str] = []
del _flwr_env
