"""The connection of a WebSocket when the server stops."""

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class WebSocketConnection(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which leaves an open session to the application when the server stops.

    uvicorn would close it with 1012 as soon as the port is closed, in the middle of a response. The session itself ends
    when its response has, as every request does; what has not ended in time is cut with all others.
    """

    def shutdown(self) -> None:
        if not self.handshake_complete or self.close_sent:
            super().shutdown()
