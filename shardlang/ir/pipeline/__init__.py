"""Pipelines: what every rank does with every microbatch of its stages, and in which order."""
