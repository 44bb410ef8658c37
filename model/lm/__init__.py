"""The language model: a transformer over coarse tokens and log-mel frames, and its depth decoder."""
