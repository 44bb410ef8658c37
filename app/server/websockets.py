"""The connection of a WebSocket: when the server stops, and when its client means harm."""

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

FRAGMENTS = 1_024  # of a message; empty ones count in no size, and each takes memory


class WebSocketConnection(WebSocketsSansIOProtocol):
    """uvicorn's protocol, which leaves an open session to the application when the server stops.

    uvicorn would close it with 1012 as soon as the port is closed, in the middle of a response. The session itself ends
    when its response has, as every request does; what has not ended in time is cut with all others.

    Nor does it answer a client that takes no answers, or hold a message in pieces without number: uvicorn does both,
    with memory that has no bound. And text that is no UTF-8 is its client's fault, not one for the log.
    """

    def shutdown(self) -> None:
        if not self.handshake_complete or self.close_sent:
            super().shutdown()

    def handle_ping(self) -> None:
        """Answers, unless answers wait already: the last of several pings may be answered for all (RFC 6455, 5.5.3)."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < FRAGMENTS:
            super().handle_cont(event)
        else:
            self._fail(CloseCode.MESSAGE_TOO_BIG, f"a message may come in {FRAGMENTS} pieces")

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "a text is no UTF-8")
                return
        super().send_receive_event_to_app()

    def _fail(self, code: CloseCode, reason: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()
