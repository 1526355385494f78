"""FastAPI's names that our routes use. Without the extra `web`, importing any of our routes names it."""

try:
    from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from fastapi.routing import APIRoute
    from starlette.exceptions import HTTPException as AnyHTTPException
    from starlette.routing import Match
    from starlette.staticfiles import StaticFiles
    from starlette.types import Scope
except ModuleNotFoundError as missing:
    if missing.name != "fastapi":
        raise
    raise ImportError(
        "the HTTP routes need FastAPI: pip install 'session-lifecycle[web]'", name=missing.name
    ) from missing

__all__ = [
    "APIRoute",
    "APIRouter",
    "AnyHTTPException",
    "Depends",
    "FastAPI",
    "JSONResponse",
    "Match",
    "Path",
    "Query",
    "Request",
    "RequestValidationError",
    "Response",
    "Scope",
    "StaticFiles",
]
