"""From a compiled spec to a training run."""
