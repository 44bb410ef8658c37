"""Probes, metrics, models, documentation and the page."""
