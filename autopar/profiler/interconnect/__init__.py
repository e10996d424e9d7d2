"""Seconds of messages and collectives between ranks."""
