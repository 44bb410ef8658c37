"""/v1/audio/session: a conversation over a WebSocket; audio is read while it comes."""
