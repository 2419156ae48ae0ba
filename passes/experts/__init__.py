"""All that is decided about experts: which rows move, where to, and when rows are gathered."""
