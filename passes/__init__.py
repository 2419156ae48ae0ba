"""The passes: one transformation per file, named for what it does."""
