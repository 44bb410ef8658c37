"""Probes and metrics."""

import asyncio

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app.engine.engine import Engine
from app.errors import Draining, NotReady
from app.server.auth import require_key_for_metrics
from app.server.exposition import exposition
from app.server.schemas import failures

router = APIRouter(tags=["server"])


@router.get("/livez", responses=failures(503))
async def livez(request: Request) -> dict[str, str]:
    """The event loop turns, and the engine serves or will again. A 503 means: restart the process."""
    engine: Engine = request.app.state.engine
    if not engine.alive:
        raise NotReady("inference is dead")
    return {"status": "alive"}


@router.get("/readyz", responses=failures(503))
@router.get("/health", include_in_schema=False)
async def readyz(request: Request) -> dict[str, str]:
    """Weights are loaded, the engine's heartbeat is fresh, and the server is not shutting down."""
    engine: Engine = request.app.state.engine
    if engine.draining:
        raise Draining("the server is shutting down")
    if not engine.healthy:
        raise NotReady("the engine does not answer")
    return {"status": "ready"}


@router.get(
    "/metrics", dependencies=[Depends(require_key_for_metrics)], responses=failures(401), response_class=Response
)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    figures, shared = request.app.state.engine.metrics, request.app.state.shared
    told = exposition(figures, None) if shared is None else await asyncio.to_thread(exposition, figures, shared)
    return Response(told, media_type=CONTENT_TYPE_LATEST)
