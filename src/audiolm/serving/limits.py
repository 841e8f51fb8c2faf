"""Access control and limits of the server: who may send requests, how many, how large and for how long. HTTP only, no audio.

`Guard` is ASGI middleware. Refused requests are answered with problem+json (RFC 9457), and so are failures behind it, without
details; a failure after the answer has begun closes the connection.
"""

import asyncio
import hmac
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import suppress
from http import HTTPStatus
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from audiolm.config import Config
from audiolm.errors import InputError

log = logging.getLogger("audiolm.serving.server")

MOST_CLIENTS = 4096  # whose request rate is tracked
LINGER = 2.0  # seconds to keep reading a refused body, so that the client gets to read the answer

# The page may load nothing from other sites; blob: is for sound that the page holds itself.
SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; media-src 'self' blob:; worker-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
}


class Limits(Config):
    """The limits of one server. `audiolm serve queue=8 seconds=20` changes them."""

    seconds: float = Field(default=60.0, gt=0, description="seconds of new sound that one request may ask for")
    sound_seconds: float = Field(default=120.0, gt=0, description="seconds of an uploaded recording")
    upload_mb: float = Field(default=24.0, gt=0, description="megabytes of one request")
    upload_seconds: float = Field(default=30.0, gt=0, description="seconds that a request may take to arrive")
    timeout: float = Field(default=180.0, gt=0, description="seconds from a request's first byte to its answer's last")
    samples: int = Field(default=8, ge=1, description="samples that one request may ask for")
    queue: int = Field(default=128, ge=1, description="requests that may wait for the model")
    streams: int = Field(default=8, ge=1, description="streams that may run at once")
    batch: int = Field(default=16, ge=1, description="requests that are generated together")
    rate: float = Field(default=600.0, ge=0, description="requests per minute from one client; 0: no limit")
    connections: int = Field(default=512, ge=1, description="requests at once, while they arrive, wait or are answered")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.samples > self.queue:
            raise ValueError(f"queue={self.queue}: too small for one request of samples={self.samples}; give at least as many")
        return self


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as problem+json."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, "application/problem+json")


class Guard:
    """Middleware around `app`. keys: API keys; if there are any, requests need one. hosts: allowed host names; None: any.

    public: the address under which a proxy shows this server (`https://audio.example.com`): its name and pages are allowed too.

    seen: called with the path's template, the status and the seconds of every request to the API.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        keys: Collection[str] = (),
        hosts: Collection[str] | None = None,
        public: str | None = None,
        seen: Callable[[str, int, float], None] = lambda path, status, seconds: None,
    ) -> None:
        self.app, self.limits, self.seen = app, limits, seen
        self.public = origin_of(public) if public else None
        self.hosts = hosts
        if hosts is not None and self.public:
            self.hosts = {*hosts, _name_of(self.public.partition("://")[2])}
        self.keys = [key.encode() for key in keys]
        self._running = 0  # requests
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()  # per client: requests left, and at what time

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["method"] == "HEAD":  # as GET; uvicorn leaves out the body
            scope = {**scope, "method": "GET"}
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status in (408, 413):
                    await body.rest()
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    headers.setdefault(name, value)
                if status in (408, 413):
                    headers["Connection"] = "close"
            await send(message)

        body = _Body(receive, self.limits, Headers(scope=scope))
        self._running += 1
        try:
            async with asyncio.timeout(self.limits.timeout):
                refused = self._refusal(scope, Headers(scope=scope))
                await (refused or self.app)(scope, body.receive, answer)
        except TimeoutError:
            if not status:
                text = f"not done within {self.limits.timeout:g} s; ask for less or try again later"
                await problem(503, text, {"Retry-After": "10"})(scope, receive, answer)
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])
            if not status:
                await problem(500, "internal error; the server's log has the details")(scope, receive, answer)
        finally:
            self._running -= 1
        if scope["path"].startswith("/v1/"):
            self.seen(getattr(scope.get("route"), "path", "other"), status, time.monotonic() - began)

    def _refusal(self, scope: Scope, headers: Headers) -> JSONResponse | None:
        if self._running > self.limits.connections and scope["path"] != "/healthz":
            return problem(503, "too many requests at once; try again in 5 s", {"Retry-After": "5"})
        host = headers.get("host", "")
        if self.hosts is not None and _name_of(host) not in self.hosts:  # another name for this address: DNS rebinding
            return problem(400, "unknown host name; use the address that the server printed, or start it with --public and yours")
        origin = headers.get("origin")
        foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if origin is not None:
            foreign |= _plain(origin) not in (self.public, _plain(f"{origin.partition('://')[0]}://{host}"))
        if foreign and scope["method"] != "GET":  # other sites cannot read the answers to GET, as no CORS headers are sent
            return problem(403, "pages of other sites may not use this server")
        if not scope["path"].startswith("/v1/") and scope["path"] != "/metrics":
            return None
        key = _key_of(headers)
        if self.keys and not any(hmac.compare_digest(key, each) for each in self.keys):
            text = "an API key is needed; send it in the header 'Authorization: Bearer KEY'"
            return problem(401, text, {"WWW-Authenticate": "Bearer"})
        if scope["method"] == "POST":
            client = key.hex() if self.keys else (scope.get("client") or ("",))[0]
            wait = self._wait(client)
            if wait:
                text = f"more than {self.limits.rate:g} requests per minute; wait {wait} s"
                return problem(429, text, {"Retry-After": str(wait)})
        return None

    def _wait(self, client: str) -> int:
        """Seconds until this client may send again. A token bucket: one minute's requests at once, refilled continuously."""
        if not self.limits.rate:
            return 0
        now, most = time.monotonic(), max(1.0, self.limits.rate)  # with less than 1, no request would ever be allowed
        left, since = self._rates.pop(client, (most, now))
        left = min(most, left + (now - since) * self.limits.rate / 60)
        self._rates[client] = (left - 1 if left >= 1 else left, now)
        if len(self._rates) > MOST_CLIENTS:
            self._rates.popitem(last=False)
        return 0 if left >= 1 else math.ceil((1 - left) * 60 / self.limits.rate)


def origin_of(address: str) -> str:
    """The origin (scheme, host and port) of a web address. InputError if it is none."""
    with suppress(ValueError):  # a port that is no number
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and "@" not in parts.netloc:
            return _plain(f"{parts.scheme}://{parts.netloc}")
    raise InputError(f"--public {address}: give the address that browsers show, as https://audio.example.com")


class _Body:
    """A request's body, with limits on its size and on the time it takes to arrive."""

    def __init__(self, receive: Receive, limits: Limits, headers: Headers) -> None:
        self._receive, self._limits = receive, limits
        declared = headers.get("content-length", "")
        self._declared = int(declared) if declared.isdecimal() else 0
        self._asks_first = "expect" in headers
        self._taken, self._done = 0, False
        self._deadline = asyncio.get_running_loop().time() + limits.upload_seconds

    async def receive(self) -> Message:
        """ASGI's receive. HTTPException 413 or 408 if the body is too large or too slow."""
        if self._done:
            return await self._receive()
        if self._declared > self._limits.upload_mb * 1e6:
            self._refuse()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            text = f"the request took more than {self._limits.upload_seconds:g} s to arrive; send less, or faster"
            raise HTTPException(408, text) from None
        self._done = not message.get("more_body", False)
        self._taken += len(message.get("body", b""))
        if self._taken > self._limits.upload_mb * 1e6:
            self._refuse()
        return message

    def _refuse(self) -> None:
        raise HTTPException(413, f"more than {self._limits.upload_mb:g} MB; send a shorter or a compressed recording")

    async def rest(self) -> None:
        """Discard what still arrives: if the connection were closed before, the client would lose the answer."""
        if self._asks_first and not self._taken:
            return
        try:
            async with asyncio.timeout(LINGER):
                while not self._done:
                    self._done = not (await self._receive()).get("more_body", False)
        except TimeoutError:
            pass


def _name_of(host: str) -> str:
    """The host name without the port, in lower case."""
    return host.rpartition(":")[0].lower() if ":" in host and not host.endswith("]") else host.lower()


def _plain(origin: str) -> str:
    """An origin in lower case, without the port that its scheme implies."""
    scheme, _, place = origin.lower().partition("://")
    return f"{scheme}://{place.removesuffix({'http': ':80', 'https': ':443'}.get(scheme, ''))}"


def _key_of(headers: Headers) -> bytes:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return (key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode("latin-1")  # the bytes as sent
