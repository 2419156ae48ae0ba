"""Passes that send rows to the devices that hold their experts."""
