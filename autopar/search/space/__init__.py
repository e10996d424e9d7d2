"""What a search covers: points, the groups that divide work alike, and how they become plans."""
