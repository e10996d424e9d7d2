"""Several objectives at once."""
