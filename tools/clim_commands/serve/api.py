"""The HTTP interface: ``POST /predict``, ``GET /words``, ``GET /health``. Every mistake is answered by one sentence."""

import asyncio
import base64

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from clim import __version__
from clim.errors import UserError

from .service import Found, Query, Refused, Service
from .urls import fetch

KINDS = ("multipart/form-data", "application/json")
SENT = {
    "image": {"type": "string", "format": "binary", "description": "a file; in JSON its base64"},
    "url": {"type": "string", "description": "of an image, where the server allows it"},
}
FIELDS = Query.model_json_schema()["properties"] | SENT
BODY = {kind: {"schema": {"type": "object", "properties": FIELDS}} for kind in KINDS}
CLIENT_GONE = 499  # nobody reads it


def create_app(service: Service, *, urls: str = "") -> FastAPI:
    """The application. ``urls``: images at "public" addresses, at "any", or "" none."""
    app = FastAPI(title="CLIM", version=__version__, docs_url=None, redoc_url=None)  # their pages load from a CDN
    app.add_middleware(BodyLimit, most_bytes=service.limits.bytes)

    @app.exception_handler(UserError)
    async def refuse(_, error: UserError):
        status = getattr(error, "status", 422)
        return JSONResponse({"detail": str(error)}, status, {"Retry-After": "2"} if status == 503 else None)

    @app.exception_handler(ClientDisconnect)
    async def leave(_, error: ClientDisconnect):  # an upload broke off
        return Response(status_code=CLIENT_GONE)

    @app.exception_handler(Exception)
    async def fail(_, error: Exception):
        return JSONResponse({"detail": f"The server made a mistake ({type(error).__name__}); its log shows it."}, 500)

    @app.post("/predict", openapi_extra={"requestBody": {"content": BODY, "required": True}})
    async def predict(request: Request):
        """Find objects: {"model", "height", "width", "detections", "vocabulary", "novel", "milliseconds"}.

        ``detections`` are {"name", "category_id", "score", "bbox"}, the highest score first. ``bbox`` is x, y, width,
        height in pixels of the upright image; ``category_id`` is an index into ``vocabulary``.
        """
        async with service.place():
            fields = await read_fields(request)
            image, url = fields.pop("image", None), fields.pop("url", None)
            query = Query.read(service.limits, fields)
            name = query.model or next(iter(service.models))
            if name not in service.models:
                raise Refused(f'"model": choose one of {", ".join(service.models)}.')
            data = await read_image(image, url, urls=urls, most_bytes=service.limits.bytes)
            found = await unless_gone(request, service.find(data, query, [name]))
            return as_json(found[0]) if found else Response(status_code=CLIENT_GONE)

    @app.get("/words")
    async def words() -> dict:
        """The words that each model looks for where a request has none."""
        return {name: _vocabulary(model.names, model.novel) for name, model in service.models.items()}

    @app.get("/health")
    async def health() -> dict:
        """``requests``: how many are being answered or wait."""
        return {"status": "ok", "version": __version__, "models": list(service.models), "requests": service.taken}

    return app


def as_json(found: Found) -> dict:
    """The image's entry in predictions.json of ``clim predict``, with its vocabulary."""
    entry, result = found.result.to_dict(), found.result
    del entry["file_name"]
    more = {"milliseconds": found.milliseconds}
    return {"model": found.model} | entry | _vocabulary(result.names, result.novel) | more


def _vocabulary(names, novel) -> dict:
    return {"vocabulary": names, "novel": [names[k] for k in sorted(novel)]}


class BodyLimit:
    """ASGI middleware: a body of over ``most_bytes`` is answered by 413, on every path."""

    def __init__(self, app, *, most_bytes: int):
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        sentence, read = f"The request has over {self.most_bytes / 1e6:g} MB, the most that is allowed.", 0
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.most_bytes:
            return await JSONResponse({"detail": sentence}, 413)(scope, receive, send)

        async def counted():
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self.most_bytes:  # the length was not announced
                raise HTTPException(413, sentence)
            return message

        return await self.app(scope, counted, send)


async def read_fields(request: Request) -> dict:
    """The fields of a form or of a JSON object that are not null. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            fields = msgspec.json.decode(await request.body())
        except (ValueError, RecursionError) as error:
            raise Refused(f"The body is no JSON: {error}.", 400) from error
        if not isinstance(fields, dict):
            raise Refused('The body is no JSON object: write {"image": "base64 …", "words": "dog, cat"}.')
    elif kind == "multipart/form-data":
        form = await request.form(max_files=1)
        fields = {key: form.getlist(key) if len(form.getlist(key)) > 1 else form[key] for key in form}
    else:
        raise Refused(f"Send {' or '.join(KINDS)}.", 415)
    return {key: value for key, value in fields.items() if value is not None}


async def read_image(image, url, *, urls: str, most_bytes: int) -> bytes:
    """The content of an uploaded file, of base64, or of what lies at a URL. Raises Refused."""
    if (image is None) == (url is None):
        raise Refused('Send either "image" or "url".')
    if url is not None:
        if not urls:
            raise Refused('This server reads no URLs: send the file as "image".', 403)
        return await fetch(url if isinstance(url, str) else "", most_bytes=most_bytes, anywhere=urls == "any")
    if isinstance(image, UploadFile):
        return await image.read()
    try:
        return base64.b64decode(image.removeprefix("data:").rpartition(",")[2], validate=True)
    except (ValueError, AttributeError) as error:  # of another type
        raise Refused('"image" is neither a file nor base64.') from error


async def unless_gone(request: Request, work):
    """Result of the coroutine ``work``; None, and it is cancelled, if the client goes away first."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leave(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


async def _leave(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
