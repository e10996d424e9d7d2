"""One export target a file."""
