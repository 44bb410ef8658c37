"""Prompts that are read once and kept for a while, and the ends of continuations, to go on from without an upload."""
