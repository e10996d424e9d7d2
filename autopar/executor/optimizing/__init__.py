"""From gradients to the optimizer step."""
