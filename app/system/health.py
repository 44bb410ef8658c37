"""Probes, metrics and what is served."""

from fastapi import APIRouter, Depends, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.staticfiles import StaticFiles

from app.continuations.schemas import ModelBody, ModelList
from app.engine.engine import Engine
from app.errors import Draining, NotReady
from app.server.auth import require_key, require_key_for_metrics
from model.constants import FRAME_RATE_HZ, SAMPLE_RATE_HZ

# FastAPI's page loads scripts from elsewhere. Those of the package need no network, and this lets it load no others;
# its own script is inline.
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)
docs_files = StaticFiles(packages=[("fastapi_offline", "static")])
router = APIRouter(tags=["server"])


@router.get("/livez")
async def livez() -> dict[str, str]:
    """The event loop turns."""
    return {"status": "alive"}


@router.get("/readyz")
@router.get("/health", include_in_schema=False)
async def readyz(request: Request) -> dict[str, str]:
    """Weights are loaded, the engine's heartbeat is fresh, and the server is not shutting down."""
    engine: Engine = request.app.state.engine
    if engine.draining:
        raise Draining("the server is shutting down")
    if not engine.healthy:
        raise NotReady("the engine does not answer")
    return {"status": "ready"}


@router.get("/metrics", dependencies=[Depends(require_key_for_metrics)], response_class=Response)
async def metrics(request: Request) -> Response:
    """Prometheus metrics."""
    return Response(generate_latest(request.app.state.engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models", dependencies=[Depends(require_key)])
async def models(request: Request) -> ModelList:
    """The bundle that is served."""
    bundle = request.app.state.engine.bundle
    without, whole = bundle.decoder.parameter_count(), bundle.decoder.parameter_count(fine=True)
    body = ModelBody(
        id=bundle.name,
        preset=bundle.preset,
        parameters=without,
        fine_parameters=whole - without,
        codec=bundle.codec.config.to_dict(),
        hashes=bundle.hashes,
        licence=bundle.licence,
        window_seconds=bundle.decoder.config.window / FRAME_RATE_HZ,
        sample_rate=SAMPLE_RATE_HZ,
        frame_rate=FRAME_RATE_HZ,
        batch_invariant=request.app.state.engine.batch_invariant,
    )
    return ModelList(data=[body])


@router.get("/openapi.json", dependencies=[Depends(require_key)], include_in_schema=False)
async def openapi(request: Request) -> JSONResponse:
    """The description of the interface."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", dependencies=[Depends(require_key)], include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The description, to be read and tried out."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=request.app.title,
        swagger_js_url="docs/files/swagger-ui-bundle.js",
        swagger_css_url="docs/files/swagger-ui.css",
        swagger_favicon_url="static/icon.svg",
    )
    page.headers["content-security-policy"] = DOCS_POLICY
    return page
