"""Which samples a step trains on, and which replica takes which of them: one file each."""
