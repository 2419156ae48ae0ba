"""The process of the suite: garbage is collected rarely, for a collection looks at all models."""

from __future__ import annotations

import gc

from shardlang.ir.collection import RARELY

gc.set_threshold(*RARELY)
