"""GET /: the page on which a person records or drops a clip and hears it go on; plain files, no build step.

It holds no data and is open. What it calls, the API, is not: the person types a key in where the server wants one.
"""

import os
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.settings import Settings

STATIC = Path(__file__).resolve().parents[1] / "static"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"  # beside weights/, in a checkout and in the image
CLIPS = ("music.flac", "speech.flac")
LIMITS = ("max_prompt_seconds", "max_seconds", "max_upload_mib")
HEADERS = {
    # Nothing from elsewhere and nothing inline: what the name of a file or the text of an error holds never is code.
    "content-security-policy": "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",  # kept, and asked for again each time: names tell no version, and a 304 is short
}
TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml", ".flac": "audio/flac",
}  # fmt: skip  # the system's own table may lack them, and nosniff makes a browser refuse a module of a wrong type
router = APIRouter(include_in_schema=False)


class Files(StaticFiles):
    """A folder with the page's headers. ETag, 304 and the guard against paths that lead outside are Starlette's."""

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        answer = super().file_response(full_path, stat_result, scope, status_code)
        answer.headers.update(HEADERS)
        if answer.status_code != 304:
            answer.headers["content-type"] = TYPES[Path(full_path).suffix]
        return answer


files = Files(directory=STATIC)
examples = Files(directory=EXAMPLES, check_dir=False)  # an installation without them has a page without them


@router.api_route("/", methods=["GET", "HEAD"])
async def page(request: Request) -> Response:
    """The page."""
    return await files.get_response("index.html", request.scope)


@router.api_route("/limits.json", methods=["GET", "HEAD"])
async def limits(request: Request) -> Response:
    """What the page may send: it tells a person before an upload, not after it."""
    settings: Settings = request.app.state.settings
    return JSONResponse(settings.model_dump(include=set(LIMITS)), headers=HEADERS)


@router.api_route("/examples/{name}", methods=["GET", "HEAD"])
async def example(request: Request, name: str) -> Response:
    """A clip to try the page with."""
    if name not in CLIPS:
        raise HTTPException(404)
    return await examples.get_response(name, request.scope)
