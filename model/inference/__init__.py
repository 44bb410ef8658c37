"""Scoring and generating with a checkpoint; each backend computes one step of many rows."""
