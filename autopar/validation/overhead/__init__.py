"""The executor against the same training written by hand."""
