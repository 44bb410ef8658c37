"""A connection beside its request: how long a head may be and take, how much may wait, and how it is closed.

uvicorn's protocol has no such bounds. It reads a head of any length for any time, and a header that never ends costs
the square of its length on the event loop; it takes up any number of requests that are sent behind one that is still
answered; and it closes on a body that it has not read, for which the system resets the connection, so that the client
loses the answer (RFC 9112, section 9.6). All of this comes before keys are looked at, so everyone can do it.
"""

import asyncio
import json
import re
import selectors
import socket
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import HeadTooLarge, MalformedRequest, ServiceError, UploadTimeout
from app.metrics import Metrics
from app.server.logs import answered
from app.server.middleware import REQUEST_ID, SAFE_HEADERS
from app.settings import Settings

HEAD_BYTES = 65_536  # and as much for what follows a body's last chunk
HEADERS = 256  # in a head; each costs memory beside its bytes, and 64 KiB hold 16,000
SLICE_BYTES = 8_192  # handed to the parser at once: it cannot be stopped within, whatever number of requests this holds
LINGER_BYTES = 2**28  # of a body whose answer has been given: read and forgotten, so that the answer arrives
LINGER_SECONDS = 30.0  # for these bytes, or as long as a body may take
LINGER_IDLE_SECONDS = 5.0  # without a byte: the client has its answer, or is gone
WAITING = 1_024  # connections without a request in hand
DESCRIPTORS = 8_192  # wanted; many systems give a process 1,024 unless it asks
GRACE_SECONDS = 5.0  # beyond `send_timeout_seconds`: for the application to notice first, and to count it
HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=:\[\]%-]*")  # RFC 3986, section 3.2, without userinfo


class Waiting:
    """The connections that have no request in hand, the one that waits longest first.

    Half a head, an idle connection, a body that is thrown away: none does anyone good, and all hold a descriptor and
    some memory. When there are too many, the oldest goes: a good client's head is whole before it can be that.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: dict[Connection, None] = {}

    def join(self, one: "Connection") -> None:
        self.leave(one)
        self._all[one] = None
        if len(self._all) > self._most:
            oldest = next(iter(self._all))
            self.leave(oldest)
            oldest.transport.abort()

    def leave(self, one: "Connection") -> None:
        self._all.pop(one, None)


class Flow(FlowControl):
    """Reading stays paused while there is something held that the parser has not seen."""

    held = False

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class Closing:
    """The transport as a request's answer sees it: closed lingering."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self.is_closing = connection.transport.is_closing

    def write(self, data: bytes) -> None:
        if not self.is_closing():  # uvloop raises then
            self._connection.transport.write(data)

    def close(self) -> None:
        self._connection.close()


class Refused(Exception):
    """Ends the parser's work; the connection knows what for."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol with bounds. Its settings are its class's, see `connection`."""

    settings: ClassVar[Settings]
    metrics: ClassVar[Metrics]
    waiting: ClassVar[Waiting]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._flow: Flow
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._held = bytearray()  # has come, and the parser has not seen it
        self._quiet = 0  # bytes since a head, a piece of a body or a message ended
        self._begun = False  # the parser is within a head
        self._in_body = False  # between the end of a head and the end of its message
        self._fault: ServiceError | None = None  # why the parser's work was ended
        self._last_word: ServiceError | None = None  # to be told after the answer that is under way
        self._forgetting = False  # nothing that comes is looked at any more
        self._forgotten = 0  # bytes that came after their answer
        self._heard = 0.0  # when the last of these came
        self._timer: asyncio.TimerHandle | None = None  # of a head, or of bytes to forget

    # What the loop calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = self._flow = Flow(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # The application has handed over the last part long before a client stops to take it, and uvicorn's close
            # waits for the client. Linux alone can say so (RFC 5482); elsewhere such a connection stays.
            milliseconds = round(1000 * (self.settings.send_timeout_seconds + GRACE_SECONDS))
            tcp = transport.get_extra_info("socket")
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(milliseconds, 2**31 - 1))
        self._wait(self.settings.head_timeout_seconds, self._head_is_late)
        self.waiting.join(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_no_more()
        self.waiting.leave(self)
        self._held.clear()
        self.pipeline.clear()
        for cycle in self._unanswered:  # uvicorn knows of the last alone
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._forgetting or self._last_word is not None:
            self._forget(len(data))
            return
        if self._in_body and self.cycle.response_complete:
            self._forget(len(data))
        self._held += data
        self._feed()

    def shutdown(self) -> None:
        if not self._forgetting:  # else it ends by itself, and soon
            super().shutdown()

    # What the parser calls

    def on_message_begin(self) -> None:
        self._begun = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:
            return  # behind the last chunk: nobody reads these, and they must not pass for the head's
        if len(self.headers) == HEADERS:
            self._fault = HeadTooLarge(f"a request may have {HEADERS} headers")
            raise Refused
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._quiet, self._begun = 0, False
        self._wait_no_more()
        self._unset_keepalive_if_required()
        self._fault = self._head_fault()
        if self._fault is not None:
            raise Refused
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is before:  # the connection is a WebSocket's as soon as the parser has returned
            return
        self._in_body = True
        self.waiting.leave(self)
        self.cycle.transport = cast(asyncio.Transport, Closing(self))
        self._unanswered.append(self.cycle)

    def on_body(self, body: bytes) -> None:
        self._quiet = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._quiet, self._in_body = 0, False
        super().on_message_complete()
        if (
            self.cycle is not None and self.cycle.response_complete
        ):  # all that was to be forgotten has come: the connection can be used again
            self._wait_no_more()
            self._forgotten = 0
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # What uvicorn calls

    def send_400_response(self, msg: str) -> None:
        error, self._fault = self._fault or MalformedRequest("this is no HTTP that the server understands"), None
        self._reject(error)

    def on_response_complete(self) -> None:
        if self._unanswered:
            self._unanswered.popleft()
        if self._forgetting:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:  # one that waited is answered now
            return
        self.waiting.join(self)
        if self._last_word is not None:
            self._refuse(self._last_word)
        elif self._in_body:
            self._unset_keepalive_if_required()
            self._linger()
        else:
            self._feed()

    def timeout_keep_alive_handler(self) -> None:
        # uvloop runs what is due before it reads what has come: after a pause the next request may lie there unread,
        # and to close on it would reset the connection
        if not self._has_unread():
            super().timeout_keep_alive_handler()

    # Our own

    def _has_unread(self) -> bool:
        """Whether the loop is about to be handed bytes, or the client's end."""
        if self.transport.is_closing():
            return False
        with selectors.DefaultSelector() as selector:
            selector.register(self.transport.get_extra_info("socket").fileno(), selectors.EVENT_READ)
            return bool(selector.select(0))

    def close(self) -> None:
        """Closes when the client has had the time to read what was sent."""
        if not (self._in_body or self._held or self._last_word):
            self.transport.close()  # nothing is unread
            return
        self._forgetting = True
        self._held.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._flow.held = False
        self.flow.resume_reading()
        self._unset_keepalive_if_required()
        self.waiting.join(self)
        self._linger()

    def _feed(self) -> None:
        """Hands what came to the parser, up to a request that has to wait until another is answered."""
        while self._held and not (self.pipeline or self._forgetting or self._last_word or self.transport.is_closing()):
            piece = bytes(self._held[:SLICE_BYTES])
            del self._held[:SLICE_BYTES]
            self._quiet += len(piece)
            super().data_received(piece)
            if self.transport.get_protocol() is not self:
                self.waiting.leave(self)
                self._held.clear()
                return
            if self._quiet >= HEAD_BYTES and not self._forgetting:
                self._reject(HeadTooLarge(f"the head of a request may hold {HEAD_BYTES // 1024} KiB"))
        if self._held and self.pipeline:
            # That the client leaves is not heard meanwhile: whoever sends that far ahead cannot expect it to be.
            self._flow.held = True
            self.flow.pause_reading()
        elif self._flow.held:
            self._flow.held = False
            self.flow.resume_reading()
        idle = not self._in_body and not self._forgetting and (self.cycle is None or self.cycle.response_complete)
        if idle and self._timer is None and (self._begun or self._quiet):
            self._unset_keepalive_if_required()
            self._wait(self.settings.head_timeout_seconds, self._head_is_late)

    def _reject(self, error: ServiceError) -> None:
        """What was sent cannot be served: tells so if there is still room for it, and closes."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self.close() if self._in_body else self._refuse(error)
        elif not self._in_body:  # that one has been read, and this came behind it
            self._last_word = error
            self._held.clear()
        elif cycle.response_started or self.pipeline:
            self.transport.close()
        else:
            cycle.disconnected = True
            cycle.message_event.set()
            self._refuse(error)

    def _refuse(self, error: ServiceError) -> None:
        given = next((value.decode("latin-1") for name, value in self.headers or [] if name == b"x-request-id"), "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        body = json.dumps({"error": error.body(request_id)}).encode()
        headers = [
            *self.server_state.default_headers, *SAFE_HEADERS, (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)), (b"x-request-id", request_id.encode()), (b"connection", b"close"),
        ]  # fmt: skip
        head = STATUS_LINE[error.status] + b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        self.transport.write(head + b"\r\n" + body)
        self.metrics.requests.labels("other", "client_error").inc()
        state = {"request_id": request_id, "facts": {"error": error.code}}
        answered(state, self.client[0] if self.client else None, "other", "other", error.status, "client_error", 0.0)
        self.metrics.input_errors.labels(error.code).inc()
        self._last_word = error
        self.close()

    def _head_fault(self) -> ServiceError | None:
        """What is wrong with a head that can be read."""
        # RFC 9112, section 3.2: a server must refuse these, as it and a proxy before it may read them differently
        hosts = [value.strip() for name, value in self.headers if name == b"host"]
        if len(hosts) > 1 or (not hosts and self.parser.get_http_version() != "1.0"):
            return MalformedRequest("send one Host header")
        if hosts and not HOST.fullmatch(hosts[0]):
            return MalformedRequest("the Host header names no host")
        if self.parser.should_upgrade() and self._should_upgrade():
            names = {name for name, _ in self.headers}
            if self.parser.get_method() != b"GET" or names & {b"content-length", b"transfer-encoding"}:
                return MalformedRequest("a WebSocket opens with a GET that has no body")
            if self._unanswered:
                return MalformedRequest("a WebSocket opens on a connection whose requests are answered")
        return None

    def _head_is_late(self) -> None:
        self._timer = None
        if self._begun:
            self._reject(UploadTimeout(f"the head did not arrive within {self.settings.head_timeout_seconds:g} s"))
        elif not self._has_unread():  # what lies there sets the clock anew
            self.transport.close()

    def _linger(self) -> None:
        self._heard = self.loop.time()
        self._look(self._heard + max(LINGER_SECONDS, self.settings.upload_timeout_seconds))

    def _look(self, until: float) -> None:
        """Ends a connection that has been silent, or has sent what nobody wants until its time is up."""
        now = self.loop.time()
        if now >= until or now - self._heard >= LINGER_IDLE_SECONDS:
            self.transport.close()
        else:
            self._wait(min(LINGER_IDLE_SECONDS, until - now), partial(self._look, until))

    def _forget(self, count: int) -> None:
        self._heard = self.loop.time()
        self._forgotten += count
        if self._forgotten > LINGER_BYTES:
            self.transport.abort()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        self._wait_no_more()
        self._timer = self.loop.call_later(seconds, then)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def descriptors() -> int:
    """Files and connections that this process may have open, after the limit has been raised as far as it goes."""
    try:
        import resource
    except ImportError:  # Windows
        return DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connection(settings: Settings, metrics: Metrics, waiting: int = WAITING) -> type[asyncio.Protocol]:
    """The protocol for one server, of whose connections so many may wait."""

    class Ours(Connection):
        pass

    Ours.settings, Ours.metrics, Ours.waiting = settings, metrics, Waiting(waiting)
    return Ours
