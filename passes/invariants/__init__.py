"""Invariants: what holds of a graph from the pass that establishes it to the one that retires it.

The checks know the type system and nothing of how the passes reach it.
"""
