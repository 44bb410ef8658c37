"""Decoders of the codec: latents at 75 Hz to samples."""
