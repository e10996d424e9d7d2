"""Peak memory and out-of-memory outcomes of published runs."""
