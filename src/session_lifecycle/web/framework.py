"""FastAPI's names that our routes use. Without the extra `web`, importing any of our routes names it."""

try:
    from fastapi import APIRouter, Depends, FastAPI, Header, Path, Query, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
    from fastapi.routing import APIRoute
    from starlette.exceptions import HTTPException as AnyHTTPException
    from starlette.routing import Match
    from starlette.staticfiles import StaticFiles
    from starlette.types import ASGIApp, Receive, Scope, Send
except ModuleNotFoundError as missing:
    if missing.name != "fastapi":
        raise
    raise ImportError(
        "the HTTP routes need FastAPI: pip install 'session-lifecycle[web]'", name=missing.name
    ) from missing

__all__ = [
    "APIRoute",
    "APIRouter",
    "ASGIApp",
    "AnyHTTPException",
    "Depends",
    "FastAPI",
    "Header",
    "JSONResponse",
    "Match",
    "Path",
    "PlainTextResponse",
    "Query",
    "Receive",
    "Request",
    "RequestValidationError",
    "Response",
    "Scope",
    "Send",
    "StaticFiles",
    "StreamingResponse",
]
