"""Schedules of pipelines: in which order every rank computes its microbatches."""
