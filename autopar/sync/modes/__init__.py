"""Ways to keep replicas together, one file each."""
