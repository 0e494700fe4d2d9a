"""Private federated fine-tuning of a small vision-language model.

The functions named here are those of `carefl_secure.library`, which is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carefl_secure.library import audit_run, budget, evaluate, load, load_config, report_run, resume, train

__all__ = ["__version__", "audit_run", "budget", "evaluate", "load", "load_config", "report_run", "resume", "train"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("carefl_secure.library"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
