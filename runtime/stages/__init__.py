"""The stages of a pipeline on this device: its actions, and what it sends to other stages."""
