"""Seconds of blocks: measured curves if they apply, else a calibrated roofline."""
