"""Encoders of the codec: samples to latents at 75 Hz."""
