"""What one client may ask for: requests and seconds of audio a minute, and requests at the same time.

A client is an API key. A server without keys knows clients by their addresses alone: as the connection has them, or as
a proxy tells them that uvicorn trusts (by default one on this machine, in ``X-Forwarded-For``).
"""

import ipaddress
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from fastapi import Request
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, SlidingWindowCounterSupport
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.requests import HTTPConnection

from app.errors import AudioTooLong, RateLimited
from app.metrics import Metrics
from app.settings import Settings

LIMITS = ("limit_requests_per_minute", "limit_audio_seconds_per_minute", "limit_concurrent_requests")
CONCURRENT_RETRY_SECONDS = 1  # nobody knows when a client's own requests end


def client_of(request: HTTPConnection) -> str:
    """Whose request it is: the name of its key, or else its address.

    A household or a machine has 2^64 addresses of IPv6, so these are one client.
    """
    name: str | None = getattr(request.state, "key", None)
    if name is not None:
        return f"key {name}"
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a socket of this machine's
        return f"address {host}"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return f"address {ipaddress.ip_network((address, 64), strict=False)}"
        address = address.ipv4_mapped
    return f"address {address}"


def wait_seconds(
    limit: int, cost: int, window: float, previous: int, previous_left: float, current: int, current_left: float
) -> float:
    """Until ``cost`` fits into a sliding window that counts the window before the current one by what is left of it.

    Args:
        limit: what fits into a window.
        cost: what shall be added; not more than the limit.
        window: seconds.
        previous: counted in the window before.
        previous_left: seconds for which a part of that still counts.
        current: counted in the current window.
        current_left: seconds until the current window is the one before.
    """
    room = limit - cost + 1  # less than this may be counted: parts of one are let go
    if current < room:  # what was counted before fades away meanwhile
        return max(previous_left - window * (room - current) / previous, 0.0) if previous else 0.0
    return current_left + max(window * (1 - room / current), 0.0)


class Limits:
    """Counts what clients ask for. For the event loop alone; the counters of a client are gone after two minutes."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._storage = MemoryStorage()
        # Two counters a client. The moving window would keep an entry for each second of audio.
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._requests = self._per_minute(settings.limit_requests_per_minute, "requests")
        self._audio = self._per_minute(settings.limit_audio_seconds_per_minute, "audio")
        self._concurrent = settings.limit_concurrent_requests
        self.inside: Counter[str] = Counter()

    @staticmethod
    def _per_minute(amount: int | None, namespace: str) -> RateLimitItem | None:
        return None if amount is None else RateLimitItemPerMinute(amount, namespace=namespace)

    async def request(self, client: str) -> None:
        """Counts a request, before its body is read. Raises RateLimited when the client had its share already."""
        if self._audio is not None and not await self._limiter.test(self._audio, client):
            raise await self._refusal(self._audio, client, 1, "audio", "seconds of audio")
        if self._requests is not None and not await self._limiter.hit(self._requests, client):
            raise await self._refusal(self._requests, client, 1, "requests", "requests")

    async def audio(self, client: str, seconds: float) -> None:
        """Counts audio that was sent, or is asked for.

        Raises RateLimited when it is too much for now, and AudioTooLong when it will always be.
        """
        if self._audio is None:
            return
        cost = max(math.ceil(seconds), 1)
        if cost > self._audio.amount:
            message = f"{seconds:.1f} s of audio: this server takes {self._audio.amount} s a minute of a client"
            raise AudioTooLong(message, "file")
        if not await self._limiter.hit(self._audio, client, cost=cost):
            raise await self._refusal(self._audio, client, cost, "audio", "seconds of audio")

    @contextmanager
    def one(self, client: str) -> Iterator[None]:
        """While a request is inside. Raises RateLimited when as many of the client's are as may be."""
        if self._concurrent is None:
            yield
            return
        if not self._enter(client, self._concurrent):
            self._metrics.rejected.labels("limit_concurrent").inc()
            message = f"a client may have {self._concurrent} requests under way at a time"
            raise RateLimited(message, headers={"retry-after": str(CONCURRENT_RETRY_SECONDS)})
        try:
            yield
        finally:
            self._leave(client)

    def _enter(self, client: str, most: int) -> bool:
        """One more of the client's is inside, unless as many are as may be."""
        if self.inside[client] >= most:
            return False
        self.inside[client] += 1
        return True

    def _leave(self, client: str) -> None:
        self.inside[client] -= 1
        if not self.inside[client]:
            del self.inside[client]

    async def _refusal(self, item: RateLimitItem, client: str, cost: int, label: str, what: str) -> RateLimited:
        self._metrics.rejected.labels(f"limit_{label}").inc()
        window = item.get_expiry()
        storage = cast(SlidingWindowCounterSupport, self._limiter.storage)
        previous, previous_left, current, current_left = await storage.get_sliding_window(item.key_for(client), window)
        wait = wait_seconds(item.amount, cost, window, previous, previous_left, current, current_left - window)
        headers = {"retry-after": str(max(math.ceil(wait), 1))}
        return RateLimited(f"a client may ask for {item.amount} {what} a minute", headers=headers)


async def limited(request: Request) -> None:
    """Dependency of the routes that compute, behind the one that looks at the key."""
    limits: Limits = request.app.state.limits
    await limits.request(client_of(request))
