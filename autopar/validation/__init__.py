"""Predictions for published training runs, and what they are worth: fit, hold out, score."""
