"""Seconds, bytes sent and peak memory of the steps of a run."""
