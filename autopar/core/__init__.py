"""Value types and services every other layer uses: estimates, units, errors, files, registry."""
