"""Step times of published runs: the formula, its fit, what is left over, and the score."""
