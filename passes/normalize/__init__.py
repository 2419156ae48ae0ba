"""Passes that bring a captured graph into the form that rules and layouts need."""
