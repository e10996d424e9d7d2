"""A plan inside the user's own training loop."""
