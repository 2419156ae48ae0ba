"""Passes that give every op an assignment of mesh axes to its factors."""
