"""Seconds of collectives, messages and gradient synchronisation between given devices."""
