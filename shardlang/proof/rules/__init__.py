"""The brute-force proof of the op rules: every legal split of every sample against the op."""
