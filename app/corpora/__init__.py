"""Corpora: where their clips are named, who scores them, and the rows that come of it."""
