"""Passes that turn assignments into ops on shards and the collectives between them."""
