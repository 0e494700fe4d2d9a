"""From a word on the command line to an engine."""

from __future__ import annotations

from collections.abc import Callable

from carefl_secure.config import Config
from carefl_secure.errors import ConfigError
from carefl_secure.federation.run_spec import Engine
from carefl_secure.progress import Reporter

ENGINES = ("inprocess", "ray", "superlink")


def choose_engine(name: str) -> Callable[[Config, Reporter], Engine] | None:
    """Return what makes an engine (None: this process); `ConfigError` for unknown names, `EngineError` without Ray."""
    if name == "inprocess":
        return None
    if name == "ray":
        from carefl_secure.deployment.ray.cluster import require_ray

        require_ray()
        from carefl_secure.deployment.ray.engine import RayEngine

        return RayEngine.of
    if name == "superlink":
        from carefl_secure.deployment.superlink.local import Loopback

        return Loopback
    raise ConfigError(f"there is no engine {name!r}; choose one of {', '.join(ENGINES)}")
