"""Lower bounds of many points at once, as arrays over the groups of a space."""
