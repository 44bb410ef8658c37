"""The service: HTTP, scheduling, files. Imports `model`, never the reverse."""

__version__ = "0.1.0"  # the only place; pyproject.toml reads it
