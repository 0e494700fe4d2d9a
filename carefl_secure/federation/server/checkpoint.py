"""What a run can be resumed from: its agreed plan, and its state after each finished round."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from carefl_secure.errors import ConfigError, RunError
from carefl_secure.federation.run_spec import RunSpec
from carefl_secure.federation.server.optimizers import ServerOptimizer
from carefl_secure.run_folder import write_atomically

Adapter = NDArray[np.float32]
_OPTIMIZER = "optimizer."


class Checkpoints:
    """Writes and reads the state of one run or stage; ``optimizer`` is restored in place."""

    def __init__(self, spec: RunSpec, optimizer: ServerOptimizer) -> None:
        self._folder, self._stage, self._optimizer = spec.folder, spec.stage, optimizer
        self._aggregation = spec.aggregation.label

    def begin(self, initial: Adapter) -> Adapter:
        """Check that the folder is fresh, then write the plan and a checkpoint before any round.

        The plan of a run in stages is whole before the first of them; later ones add a checkpoint. Raises ConfigError
        when the adapter does not fit the plan, RunError when the folder was used.
        """
        dimension = self._stage.plan.encoding.dimension
        if initial.dtype != np.float32 or initial.shape != (dimension,):
            raise ConfigError(f"the adapter must be float32 [{dimension}], not {initial.dtype} {initial.shape}")
        folder, stage = self._folder, self._stage
        if stage.number == 1:
            if folder.checkpoint.exists() or folder.ledger.exists():
                raise RunError(f"{folder.path} was used before; resume it or create a new run")
            self._write_plan()
        adapter = initial.copy()
        self.save(adapter, stage.offset)
        return adapter

    def _write_plan(self) -> None:
        text = json.dumps(self._stage.agreement, indent=2, sort_keys=True, allow_nan=False)
        write_atomically(self._folder.plan, text.encode() + b"\n")

    def save(self, adapter: Adapter, number: int) -> None:
        """Replace the checkpoint by the state after round ``number``."""
        state = {_OPTIMIZER + name: value for name, value in self._optimizer.state().items()}
        agreed: dict[str, int | str] = {"round": number, "plan": self._stage.digest, "aggregation": self._aggregation}
        where = self._stage.state()
        self._folder.write_checkpoint({**agreed, "adapter": adapter, **where, **state})

    def restore(self) -> tuple[Adapter, int]:
        """Return adapter and number of the last finished round; drop figures that go beyond it.

        A plan file that a power cut left empty or torn is written anew: the checkpoint names it.
        Raises RunError when the checkpoint is damaged or of another run.
        """
        folder, stage = self._folder, self._stage
        state = folder.read_checkpoint()
        if state.get("plan") != stage.digest:
            raise RunError(f"{folder.path} was begun under another plan; resume it with its own")
        if state.get("stage") != stage.number:
            raise RunError(
                f"the checkpoint of {folder.path} is of stage {state.get('stage')}, not "
                f"{stage.number}; restore it from a copy"
            )
        begun = state.get("aggregation")
        if begun != self._aggregation:
            raise RunError(
                f"{folder.path} was begun with aggregation {begun}, not {self._aggregation}; whom "
                "the clients trust does not change within a run: resume it with its own"
            )
        adapter, number = state.get("adapter"), state.get("round")
        if not isinstance(adapter, np.ndarray) or not isinstance(number, int):
            raise RunError(f"the checkpoint of {folder.path} lacks its adapter; restore it from a copy")
        self._optimizer.load({k.removeprefix(_OPTIMIZER): v for k, v in state.items() if k.startswith(_OPTIMIZER)})
        try:
            folder.read_plan()
        except RunError:
            self._write_plan()
        folder.keep_metrics(number)
        return adapter.astype(np.float32), number
