"""POST /score."""
