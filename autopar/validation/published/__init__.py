"""Everything `scripts/validate_published` says and writes."""
