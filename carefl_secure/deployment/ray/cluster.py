"""Ray on this machine alone, for one run: started, and ended with all that it started."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from carefl_secure.deployment.flower.processes import interrupt_on_terminate
from carefl_secure.errors import EngineError

_MB = 2**20


@functools.cache
def network_settings() -> dict[str, str]:
    """Return what Ray reads once, while imported, alike in all runs; `EngineError` if it was imported without them."""
    if "ray" in sys.modules:
        raise EngineError(
            "Ray was imported before this engine started, so it may listen beyond the loopback; "
            "train in a process that does not import ray itself"
        )
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # The name is Ray's; what it turns off is every address but 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # An actor sees the GPUs that this process sees.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def require_ray() -> None:
    """Check that Ray is installed, without importing it; `EngineError` when it is not."""
    if importlib.util.find_spec("ray") is None:
        raise EngineError('Ray is not installed; pip install "carefl-secure[ray]", or leave --engine out')


class RayCluster:
    """The processes of Ray for one run, and the folder that they share.

    All that Ray writes lies below ``scratch``, a folder of this run that no other account can read.

    Guarantees
    ----------
    Every socket is bound to the loopback and asks for a token that is made anew by every process of
    ours and handed on in the environment alone, which other accounts cannot read. No dashboard is
    served and no usage is reported. After `stop` no process of Ray is left, and the environment is
    what it was; should this process be killed, the kernel and Ray's own reaper end them.
    """

    def __init__(self) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="carefl-"))  # mode 0700
        self._undo = ExitStack()
        self._undo.callback(shutil.rmtree, self.scratch, ignore_errors=True)

    def start(self, actors: int, dimension: int) -> None:
        """Start Ray for adapters of length ``dimension``; `EngineError` if it fails or listens beyond the loopback."""
        self._undo.callback(set_environment(network_settings() | _thread_settings(actors)))
        self._undo.callback(interrupt_on_terminate())
        import ray  # which is an extra

        if ray.is_initialized():
            raise EngineError("Ray runs in this process already; shut it down first")
        self._undo.callback(ray.shutdown)
        try:
            ray.init(
                address="local",
                num_cpus=actors,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=256 * _MB + actors * 64 * dimension,
                _temp_dir=str(self.scratch),
            )
        except SystemExit as stop:  # Ray's own answer to SIGTERM, until ours is back
            raise KeyboardInterrupt from stop
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise EngineError(
                f"Ray did not start: {error}; a short TMPDIR and free memory in /dev/shm help"
            ) from error
        interrupt_on_terminate()
        found = ray.util.get_node_ip_address()
        if found != "127.0.0.1":
            raise EngineError(f"Ray would listen on {found}, which is beyond the loopback")

    def kill_actors(self) -> None:
        """End the actors that have begun to work, whatever they are doing."""
        for actor in (self.scratch / "actors").glob("*"):
            actor.unlink()  # its number may soon be another's
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(actor.name), signal.SIGKILL)

    def stop(self) -> None:
        """End every process of Ray, erase the folder, and give signals and settings back."""
        self._undo.close()


def _thread_settings(actors: int) -> dict[str, str]:
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    # Ray would set 1. A single actor computes as one process does, to the last bit.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    return {"OMP_NUM_THREADS": str(max(1, cores // actors))}


def set_environment(settings: Mapping[str, str]) -> Callable[[], None]:
    """Set variables for processes to come; return a function that restores what was there."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)

    def restore() -> None:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return restore
