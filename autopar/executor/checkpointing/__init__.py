"""Checkpoints that any plan of the same model can continue from."""
