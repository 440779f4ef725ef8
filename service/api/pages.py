"""What people read in a browser: the upload page, and the explanation of each kind of problem."""

from html import escape
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException

from service.api.problems import problem_kinds

WEB_FOLDER = Path(__file__).parent.parent / "web"
# The only files served from there, with their media types.
WEB_FILES = {"app.js": "text/javascript", "app.css": "text/css", "icon.svg": "image/svg+xml"}

router = APIRouter(include_in_schema=False)


@router.get("/")
def get_page() -> Response:
    """The page: upload a study, watch the job, read its findings."""
    return FileResponse(WEB_FOLDER / "index.html", media_type="text/html")


@router.get("/web/{name}")
def get_web_file(name: str) -> Response:
    """Script, style and icon of the page."""
    if name not in WEB_FILES:
        raise HTTPException(404)
    return FileResponse(WEB_FOLDER / name, media_type=WEB_FILES[name])


@router.get("/problems/{code}")
def get_problem(code: Annotated[str, PathParameter(max_length=100)]) -> HTMLResponse:
    """What a problem's `type` refers to."""
    kind = problem_kinds().get(code)
    if kind is None:
        raise HTTPException(404)
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in kind.explanation.split("\n\n"))
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(kind.title)}</title>'
        f'<link rel="stylesheet" href="/web/app.css"><main><h1>{escape(kind.title)}</h1>{paragraphs}'
        f"<p>Problem type <code>{escape(kind.reference)}</code>, HTTP status {kind.status}.</p></main></html>"
    )
