"""A step played from its schedule's action lists, and drawn again from its price."""
