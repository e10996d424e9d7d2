"""Every way to divide every model against one process."""
