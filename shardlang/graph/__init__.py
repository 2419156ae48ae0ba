"""Pictures of a program at each stage of the passes."""

from shardlang.graph.draw import FORMATS, STAGES, DrawError, dot_of, picture_of, write

__all__ = ["FORMATS", "STAGES", "DrawError", "dot_of", "picture_of", "write"]
