"""init: a first spec for a model, from its own plans and its structure."""

from shardlang.init.axes import AxesError
from shardlang.init.inputs import Sizes
from shardlang.init.residual import StreamError
from shardlang.init.start import Written, write_spec

__all__ = ["AxesError", "Sizes", "StreamError", "Written", "write_spec"]
