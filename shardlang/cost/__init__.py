"""Prices as pure functions: the bytes of a change of layout, and the cheapest way to make it."""
