"""Training: what is trained, one step of it, the loop, and what a run is resumed from."""
