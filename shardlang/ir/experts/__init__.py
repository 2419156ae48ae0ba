"""Routes of rows to their experts: where they lead, what they move, and what they cost."""
