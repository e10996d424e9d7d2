"""The exact problems inside one point: stage boundaries, recompute by block, shares."""
