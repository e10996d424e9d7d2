"""A step of a plan against one process."""
