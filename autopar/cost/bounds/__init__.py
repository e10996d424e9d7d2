"""Lower bounds of the simulated step time, never above it."""
