"""Plans of several axes on this host: predicted against measured."""
