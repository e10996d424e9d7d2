"""Clusters of unlike machines: in which order plans take their devices."""
