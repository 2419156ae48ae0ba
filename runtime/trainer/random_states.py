"""The random generators of a process: torch's, numpy's and Python's.

A key of `random fast` is drawn from torch's generator of the CPU, so its state is in there.
"""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from shardlang.runtime.errors import RunError


class RandomStates:
    """The states of all generators, as text and bytes; the same on ranks that are seeded alike."""

    def state_dict(self) -> dict[str, object]:
        """The states now; those of CUDA are empty where the run is not on a GPU."""
        cuda = torch.cuda.get_rng_state() if _on_gpu() else torch.empty(0, dtype=torch.uint8)
        return {
            "torch": torch.get_rng_state().numpy().tobytes(),
            "cuda": cuda.numpy().tobytes(),
            "numpy": json.dumps(_numpy_state()),
            "python": json.dumps(random.getstate()),
        }

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Set the generators.

        Raises:
            RunError: SH0608, the states are none.
        """
        try:
            torch.set_rng_state(_tensor(state_dict["torch"]))
            if _on_gpu() and state_dict["cuda"]:
                torch.cuda.set_rng_state(_tensor(state_dict["cuda"]))
            name, keys, *rest = json.loads(str(state_dict["numpy"]))
            np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
            version, numbers, after = json.loads(str(state_dict["python"]))
            random.setstate((version, tuple(numbers), after))
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise RunError(
                "SH0608",
                f"the states of the random generators cannot be set: {error}",
                help="load what `state_dict` gave",
            ) from error


def _on_gpu() -> bool:
    return torch.cuda.is_available()


def _tensor(state: object) -> torch.Tensor:
    if not isinstance(state, bytes):
        raise TypeError(f"a state is bytes, not {type(state).__name__}")
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def _numpy_state() -> list[object]:
    state = np.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    name, keys, *rest = state
    return [name, [int(key) for key in keys], *rest]
