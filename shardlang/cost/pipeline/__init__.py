"""What the stages of a pipeline cost: operations, memory, and what is in flight."""
