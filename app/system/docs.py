"""The description of the interface, and the page that shows it."""

from fastapi import APIRouter, Depends, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.staticfiles import StaticFiles

from app.server.auth import require_key

# FastAPI's page loads scripts from elsewhere. Those of the package need no network, and this lets it load no others;
# its own script is inline.
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'"
)
router = APIRouter(tags=["server"])
docs_files = StaticFiles(packages=[("fastapi_offline", "static")])


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
