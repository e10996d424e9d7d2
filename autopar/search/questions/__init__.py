"""Questions about an answer: why not another plan, what if the cluster changed, where it flips."""
