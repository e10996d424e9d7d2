"""Which of several machine sets to take."""
