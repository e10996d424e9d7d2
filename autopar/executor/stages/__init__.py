"""One pipeline rank: its stages, its messages and the order of its actions."""
