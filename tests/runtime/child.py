"""One rank of a test: `child.py module:function out` calls the function and pickles its result."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path

from shardlang.ir.collection import RARELY

gc.set_threshold(*RARELY)

import torch  # noqa: E402

from shardlang.runtime.groups import leave  # noqa: E402
from shardlang.runtime.reports import reporting  # noqa: E402
from tests import captures  # noqa: E402


def main() -> None:
    """Run the named function on this rank."""
    torch.set_num_threads(1)
    captures.share()
    rank = int(os.environ["RANK"])
    with reporting(rank):
        module, name = sys.argv[1].split(":")
        result = getattr(importlib.import_module(module), name)()
        torch.save(result, Path(sys.argv[2]) / f"{rank}.pt")
        leave()


if __name__ == "__main__":
    main()
