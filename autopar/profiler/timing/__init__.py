"""Seconds of blocks and steps, measured on the device."""
