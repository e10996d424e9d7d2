"""What a result says of itself: why this plan, what else was tried, why nothing fits."""
