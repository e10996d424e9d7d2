"""Ways to write gradients in fewer bytes, one file each."""
