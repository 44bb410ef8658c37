"""The hybrid audio language model: pure torch, knows no HTTP."""
