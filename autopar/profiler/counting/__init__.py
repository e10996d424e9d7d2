"""Operators, FLOPs, bytes and blocks of a traced graph."""
