"""Checkpoints of a run: saved in the background, committed by a manifest, loaded on any mesh."""
