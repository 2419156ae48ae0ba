"""The proof: the sharded program against the unmodified model, in float64 on one CPU."""
