"""Ranks: started, followed, and how their failures are told."""
