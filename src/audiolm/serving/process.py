"""The server process: uvicorn without version headers, with timeouts for slow clients, and with a graceful shutdown."""

import asyncio
import math
import os
import socket
import sys
from contextlib import suppress
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from audiolm.errors import InputError
from audiolm.serving.limits import Limits

HEAD_SECONDS = 10.0  # in which a connection must have sent the head of a request
HEAD_BYTES = 1 << 15


class Protocol(H11Protocol):
    """uvicorn's protocol with timeouts; by itself it waits forever for the end of a request's head."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._patience is not None:
            self._patience.cancel()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()  # closes when all is sent: never, if the client does not read
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self.config.timeout_graceful_shutdown or 0, self.transport.abort)

    def _watch(self) -> None:
        # DONE: answered before the whole request was there; uvicorn would wait forever for the rest.
        unheard = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if unheard and self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.close)
        elif not unheard and self._patience is not None:
            self._patience.cancel()
            self._patience = None


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Exit at once on a second signal. uvicorn's own forced exit, on SIGINT only, prints tracebacks and waits for the model.

        Exiting is safe, as the server writes no files that could be left incomplete.
        """
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)


def listen(app: FastAPI, host: str, port: int, limits: Limits) -> None:
    """Serve until a signal, then finish running requests; a second signal exits at once. InputError if it cannot listen."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=limits.connections)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (")[0].lower()
        raise InputError(f"--host {host} --port {port}: cannot listen there ({reason}); choose another") from error
    shown = f"[{host}]" if ":" in host else host
    print(f"audiolm: http://{shown}:{listener.getsockname()[1]} (the API: /docs)", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):
        server(app, limits).run(sockets=[listener])


def server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """uvicorn for the application; `run(sockets=[...])` returns once `should_exit` is set and running requests are done."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # anyone can forge these headers; rates are limited by address
        # Guard counts requests, refuses with a reason, and lets monitoring in. Beyond this, with idle ones, uvicorn refuses.
        limit_concurrency=2 * limits.connections + 16,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=math.ceil(limits.timeout),
    )
    return _Server(config)
