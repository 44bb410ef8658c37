"""/v1/audio/session: who may open one, and how many there may be."""

import base64
import binascii
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, WebSocket

from app.errors import Forbidden, InvalidApiKey, Overloaded, ServiceError, UpgradeRequired
from app.metrics import Metrics
from app.server.auth import require_key
from app.server.errors import answer
from app.server.limits import client_of
from app.server.schemas import ErrorResponse, failures
from app.sessions import schemas
from app.sessions.session import Session
from app.settings import Settings

router = APIRouter(tags=["session"])
events = APIRouter()  # the application's webhooks: OpenAPI has no other place for what is sent over a WebSocket
PATH = "/v1/audio/session"
UPGRADE_STATUS = UpgradeRequired.status
PROTOCOL = "whispergpt"
KEY_PROTOCOL = "whispergpt.key."  # and the key in base64url: browsers can send no header, but they can name protocols
RETRY_SECONDS = 10


class Sessions:
    """How many are open. For the event loop alone."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.most, self.open = settings.max_sessions, 0
        self._metrics = metrics

    @contextmanager
    def one(self) -> Iterator[None]:
        """While a session is open. Raises Overloaded."""
        if self.open >= self.most:
            self._metrics.rejected.labels("sessions").inc()
            headers = {"retry-after": str(RETRY_SECONDS)}
            raise Overloaded(f"this server holds {self.most} sessions at a time", headers=headers)
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, more: int) -> None:
        self.open += more
        self._metrics.sessions.set(self.open)


@router.websocket(PATH)
async def session(socket: WebSocket) -> None:
    """Talk to the model: audio in as it is recorded, audio out as it is made (docs/api.md)."""
    state = socket.app.state
    async with AsyncExitStack() as permit:
        try:
            check_origin(socket)
            state.keys.check(socket, offered_key(socket))
            client = client_of(socket)
            await state.limits.request(client)
            permit.enter_context(state.limits.one(client))
            permit.enter_context(state.sessions.one())
            permit.enter_context(state.engine.acquire(state.bodies.make_room, session=True))
            model = await permit.enter_async_context(state.models.use(socket.query_params.get("model")))
        except ServiceError as error:
            await socket.send_denial_response(answer(socket, error))
            return
        await socket.accept(PROTOCOL if PROTOCOL in socket.scope["subprotocols"] else None)
        await Session(socket, model).run()


@router.get(
    PATH,
    status_code=UPGRADE_STATUS,
    dependencies=[Depends(require_key)],
    responses=failures(401, 429, 503)
    | {
        101: {"description": "the session is open: its messages are the events under `webhooks`"},
        403: {"model": ErrorResponse, "description": "forbidden: a page of another server"},
        UPGRADE_STATUS: {"model": ErrorResponse, "description": "upgrade_required: this is a WebSocket"},
    },
)
async def describe_session() -> None:
    """A live session, over a WebSocket: audio in as it is recorded, audio out as it is made (docs/api.md).

    JSON events go both ways, one a message; a binary message is audio.
    """
    raise UpgradeRequired("this is a WebSocket: open it with one", headers={"upgrade": "websocket"})


@events.post("session.client_event", tags=["session"])
def client_event(event: schemas.AnyClientEvent) -> None:
    """A message that a client sends within a session."""


@events.post("session.server_event", tags=["session"])
def server_event(event: schemas.AnyServerEvent) -> None:
    """A message that the server sends within a session."""


def check_origin(socket: WebSocket) -> None:
    """A page of another server may not talk here by its visitor's browser: a WebSocket asks nobody (RFC 6455, 10.2).

    Raises Forbidden.
    """
    origin = socket.headers.get("origin")
    if origin is None:
        return
    try:
        own = urlsplit(origin).netloc.lower() == socket.headers.get("host", "").lower()
    except ValueError:  # no address at all
        own = False
    if not own:
        raise Forbidden("this page may not open a session here")


def offered_key(socket: WebSocket) -> bytes | None:
    """A key among the protocols that the client names. Raises InvalidApiKey for one that is no base64."""
    for name in socket.scope["subprotocols"]:
        if name.startswith(KEY_PROTOCOL):
            text = name.removeprefix(KEY_PROTOCOL)
            try:
                return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                raise InvalidApiKey("the key is no base64url") from None
    return None
