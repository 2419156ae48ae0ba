"""What XLA's two partitioners send for the programs that `ours.py` has written down.

    python benchmarks/gspmd/xla.py FOLDER [NAME...]

FOLDER gets `NAME.xla.json`: bytes by partitioner and collective, and the loss of the unsharded
JAX program on the weights of the PyTorch model. Runs in the environment of `make bench-gspmd`,
which has JAX and no PyTorch.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
from pathlib import Path
from typing import TypedDict

HERE = Path(__file__).parent
DEVICES = 8
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it warns that GSPMD's time is over
sys.path[:0] = [str(HERE), str(HERE / "programs")]

import hlo  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax import Array  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402
from jax_types import Arrays, Hold  # noqa: E402

PARTITIONERS = {"shardy": True, "gspmd": False}
"""XLA's partitioners, by whether JAX asks for Shardy; GSPMD is the one it had before."""

Entries = list[list[str] | None]
"""The axes of every dim; None where propagation decides."""


class Document(TypedDict):
    """What `ours.py` writes of a program; `params` has one or two layouts of all parameters."""

    mesh: dict[str, int]
    file: str
    function: str
    arguments: dict[str, int]
    params: list[dict[str, Entries]]
    inputs: dict[str, Entries]
    outputs: dict[str, Entries]
    values: dict[str, Entries]


class Sharded:
    """One program on its mesh."""

    def __init__(self, document: Document, arrays: Arrays) -> None:
        self.document = document
        shape = tuple(document["mesh"].values())
        self.devices = math.prod(shape)
        grid = np.array(jax.devices()[: self.devices]).reshape(shape)
        self.mesh = Mesh(grid, tuple(document["mesh"]))
        self.params = {name: arrays[name] for name in document["params"][0]}
        self.inputs = {name: arrays[name] for name in document["inputs"]}
        module = importlib.import_module(f"{document['file']}_jax")
        self.function = getattr(module, document["function"])

    def lay(self, entries: Entries) -> NamedSharding:
        """A layout as JAX has it."""
        dims = [PartitionSpec.UNCONSTRAINED if e is None else tuple(e) or None for e in entries]
        return NamedSharding(self.mesh, PartitionSpec(*dims))

    def hold(self, name: str, x: Array) -> Array:
        """An inner value in the layout that the spec states, if it states one."""
        entries = self.document["values"].get(name)
        return x if entries is None else jax.lax.with_sharding_constraint(x, self.lay(entries))

    def step(self, params: Arrays, inputs: Arrays, at: Hold | None = None) -> tuple[Array, Arrays]:
        """The loss, and the outputs of which the spec states a layout."""
        made = self.function(params, inputs, at or self.hold, **self.document["arguments"])
        return made["loss"], {name: made[name] for name in self.outputs()}

    def outputs(self) -> dict[str, Entries]:
        """The stated layouts of the outputs beside the loss."""
        return {n: entries for n, entries in self.document["outputs"].items() if n != "loss"}

    def plain_loss(self) -> float:
        """The loss of the program on one device."""
        step = jax.jit(lambda params, inputs: self.step(params, inputs, lambda name, x: x)[0])
        return float(step(self.params, self.inputs))

    def text(self, layouts: dict[str, Entries]) -> str:
        """The program of one device: loss, stated outputs and the gradient of every parameter."""
        params = {name: self.lay(entries) for name, entries in layouts.items()}
        inputs = {name: self.lay(entries) for name, entries in self.document["inputs"].items()}
        outputs = {name: self.lay(entries) for name, entries in self.outputs().items()}
        step = jax.jit(
            jax.value_and_grad(self.step, has_aux=True),
            in_shardings=(params, inputs),
            out_shardings=((self.lay([]), outputs), params),
        )
        return step.lower(self.params, self.inputs).compile().as_text()


def sent(program: Sharded, layouts: dict[str, Entries]) -> dict[str, int]:
    """Bytes by collective, of the partitioner that is set, with parameters that lie so."""
    found = dict.fromkeys(hlo.COLLECTIVES, 0)
    for one in hlo.Program(program.text(layouts), program.devices).sent():
        found[one.op] += one.bytes
    return {name.replace("-", "_"): size for name, size in found.items()}


def measure(path: Path) -> dict[str, object]:
    """Both partitioners' bytes and the loss of one program."""
    program = Sharded(json.loads(path.read_text()), np.load(path.with_suffix(".npz")))
    found: dict[str, object] = {"loss": program.plain_loss()}
    for name, is_shardy in PARTITIONERS.items():
        jax.config.update("jax_use_shardy_partitioner", is_shardy)
        ways = (sent(program, layouts) for layouts in program.document["params"])
        found[name] = min(ways, key=lambda way: sum(way.values()))
    return found


def main() -> None:
    """Measure all programs of the folder, or those that are named."""
    folder, *names = sys.argv[1:]
    for path in sorted(Path(folder).glob("*.json")):
        if "." not in path.stem and (not names or path.stem in names):
            found = measure(path)
            path.with_suffix(".xla.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
