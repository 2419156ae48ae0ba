"""The driver: from a `Spec` and a model to a compiled program, and to programs for other calls."""
