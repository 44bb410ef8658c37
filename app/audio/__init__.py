"""Audio in and out: decoding uploads, encoding answers."""
