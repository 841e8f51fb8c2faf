"""What a stage's language model sounds like while it is trained: a fixed set of prompts, continued and decoded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from audiolm.audio import Waveform
from audiolm.generation import complete
from audiolm.stages import Stage
from audiolm.tokenizers import Decoder
from audiolm.transformer import LanguageModel


class Batches(Protocol):
    """Items with `given` and `predicted` codes."""

    def batch(self, step: int) -> Sequence[Mapping[str, Any]]: ...


def stage_listener(
    stage: Stage, codec: Decoder, batches: Batches, count: int = 2, seconds: float = 3.0, prompt: float = 1.0
) -> Callable[[LanguageModel], dict[str, Waveform]] | None:
    """A function of the stage's model: what it makes of the first `count` items, after `prompt` seconds of each, or a third.

    Beside each stands what the item's own codes sound like. None for a stage whose codes no codec decodes (semantic ones).
    """
    predict = stage.predict
    if predict.spec.name != codec.spec.name:
        return None
    lower = next((n for n, stream in enumerate(stage.given) if stream.spec.name == predict.spec.name), None)
    if predict.first and lower is None:
        return None
    items = [
        [codes[:, : own.frames(seconds)] for own, codes in zip(stage.streams, (*each["given"], each["predicted"]), strict=True)]
        for each in batches.batch(0)[:count]
    ]

    @torch.no_grad()
    def listen(app: FastAPI, host: str, port: int, limits: Limits) -> None:
    """Serve until a signal comes, then finish what runs; a second signal does not wait. InputError where nobody may listen."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=limits.connections)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"--host {host} --port {port}: cannot be listened on ({reason}); choose others") from error
    shown = f"[{host}]" if ":" in host else host
    print(f"audiolm: http://{shown}:{listener.getsockname()[1]} (the API: /docs)", file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):
        server(app, limits).run(sockets=[listener])


def server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """uvicorn for the application; `run(sockets=[...])` returns when `should_exit` is set and what ran is done."""
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # anybody may write such a header: the rate of a client is that of its address
        limit_concurrency=limits.connections,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_graceful_shutdown=math.ceil(limits.timeout),
    )
    return uvicorn.Server(config)
