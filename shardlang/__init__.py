"""shardlang: a sharding compiler for PyTorch."""
