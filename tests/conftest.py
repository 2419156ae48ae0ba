"""The suite's process: garbage is collected rarely, for each collection looks through all models."""

from __future__ import annotations

import gc

from shardlang.ir.collection import RARELY

gc.set_threshold(*RARELY)
