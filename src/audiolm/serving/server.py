"""The HTTP API and the web page: `create_app(model)` is an ASGI application that keeps no sound between requests.

    POST /v1/continue  /v1/generate  /v1/revoice  /v1/reconstruct     sound; all but reconstruct can stream it
    POST /v1/speak                                                    the same, if the model has a text stage
    POST /v1/detect  /v1/tokenize                                     JSON
    GET  /v1/models  /v1/examples  /healthz  /metrics  /docs  /       the model and examples, monitoring, documentation, page

Recordings are sent as the form field `audio` (and `voice`) or as the body, parameters in the URL or in the form (apidocs).
limits decides what is accepted, uploads decodes it, and batching runs the model in one thread for all clients.
"""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from audiolm.asking import LENGTH, UNTIL_END, How, changed
from audiolm.asking import Request as Wish
from audiolm.audio import Waveform, probe
from audiolm.config import Config, parse_config
from audiolm.detector import Detector, examine
from audiolm.errors import InputError
from audiolm.model import AudioLM
from audiolm.provenance import tags
from audiolm.route import decoders
from audiolm.serving import apidocs
from audiolm.serving.apidocs import MEDIA, Continue, Generate, Making, Nothing, Reconstruct, Revoice, Speak
from audiolm.serving.batching import Aside, Busy, Worker
from audiolm.serving.limits import Guard, Limits, problem
from audiolm.serving.monitoring import Metrics
from audiolm.serving.uploads import receive, sound_of
from audiolm.wav import wav

T = TypeVar("T")
P = TypeVar("P", bound=Config)

WEB = Path(__file__).parent / "web"
# In a wheel the examples are next to the page; in a checkout they are in the repository's root.
EXAMPLES = next((each for each in (WEB / "examples", Path(__file__).parents[3] / "examples") if each.is_dir()), WEB / "examples")


def create_app(
    model: AudioLM,
    limits: Limits | None = None,
    keys: Collection[str] = (),
    hosts: Collection[str] | None = None,
    detector: Detector | None = None,
    public: str | None = None,
) -> FastAPI:
    """The application. keys: API keys; if there are any, requests need one. hosts: allowed host names; None: any.

    public: the address under which a proxy shows it, which is allowed too; InputError if it is none.

    detector: of the model's own voice, for /v1/detect, which without one looks for the watermark only.
    """
    service = Service(model, limits or Limits(), detector)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.open()
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="AudioLM", version="1", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, limits=service.limits, keys=keys, hosts=hosts, public=public, seen=service.metrics.request)
    handlers = {InputError: _mistake, Busy: _busy, ClientDisconnect: _gone, HTTPException: _refused}
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)

    described = partial(apidocs.operation, limits=service.limits, model=model)
    app.post("/v1/continue", **described(Continue, ("audio",)))(service.continue_)
    app.post("/v1/generate", **described(Generate, ()))(service.generate)
    app.post("/v1/revoice", **described(Revoice, ("audio", "voice")))(service.revoice)
    if "text" in model.stages:
        app.post("/v1/speak", **described(Speak, ("voice",), needed=0))(service.speak)
    app.post("/v1/reconstruct", **described(Reconstruct, ("audio",)))(service.reconstruct)
    app.post("/v1/tokenize", **described(Nothing, ("audio",), answer=apidocs.TOKENS))(service.tokenize)
    app.post("/v1/detect", **described(Nothing, ("audio",), answer=apidocs.MARK))(service.detect)
    app.get("/v1/models", responses=apidocs.errors(401))(service.models)
    app.get("/v1/examples", responses=apidocs.errors(401))(examples)
    app.get("/healthz", responses=apidocs.errors(503))(service.healthz)
    app.get("/metrics", responses=apidocs.errors(401) | apidocs.METRICS, response_class=Response)(service.figures)

    if keys:
        app.openapi = partial(apidocs.locked, app.openapi)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(apidocs.page(app.openapi()))

    @app.get("/examples/{name}", include_in_schema=False)
    async def example(name: str) -> FileResponse:
        return _file(EXAMPLES, name)

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return _file(WEB, "index.html")

    @app.get("/{name}", include_in_schema=False)
    async def page(name: str) -> FileResponse:
        return _file(WEB, name)

    return app


class Service:
    """The operations of the API, one method each. They work between `open` and `close`."""

    def __init__(self, model: AudioLM, limits: Limits, detector: Detector | None) -> None:
        self.model, self.limits, self.detector = model, limits, detector
        self.metrics = Metrics(lambda: sum(each.waiting for each in (self.worker, self.aside) if each))
        self.worker: Worker | None = None
        self.files: ThreadPoolExecutor | None = None  # decodes and encodes
        self.aside: Aside | None = None  # looks for watermark and voice

    def open(self) -> None:
        """Start the threads."""
        limits = self.limits
        self.worker = Worker(self.model, limits.queue, limits.batch, limits.streams, self.metrics.batch, limits.timeout)
        # OpenMP counts the helper threads of every thread that ever computed. If they outnumber the cores, those of the model's
        # thread sleep between two products, which makes it 2.4 times as slow on two cores. So no other thread gets helpers.
        self.files = ThreadPoolExecutor(2, "files", torch.set_num_threads, (1,))
        self.aside = Aside()

    def close(self) -> None:
        """Finish what is running, then stop."""
        if self.worker and self.files and self.aside:
            self.worker.close()
            self.aside.close()
            self.files.shutdown()

    async def continue_(self, request: Request) -> Response:
        """Continue a recording in the same voice, prosody, room or melody. The answer is the recording and its continuation."""
        options, sounds = await self._take(request, Continue, "audio")
        prompt = sounds["audio"]
        shown = 0.0 if options.only_new else prompt.seconds
        wish = Wish(prompt, self._seconds(options))
        return await self._made(request, "continue", options, wish, shown, only_new=options.only_new, until_end=options.until_end)

    async def generate(self, request: Request) -> Response:
        """Generate speech (or music) without a prompt: new voice, new content."""
        options, _ = await self._take(request, Generate)
        wish = Wish(None, self._seconds(options))
        return await self._made(request, "generate", options, wish, until_end=options.until_end)

    async def revoice(self, request: Request) -> Response:
        """Say the content of a recording in another voice: a random one, or that of the recording `voice`."""
        options, sounds = await self._take(request, Revoice, "audio", "voice")
        self._within(sounds["audio"].seconds, "audio: ")
        words = await self._run(request, self.model.semantic_tokens, sounds["audio"])
        return await self._made(request, "revoice", options, Wish(sounds.get("voice"), semantic=words))

    async def speak(self, request: Request) -> Response:
        """Read a text aloud, in a random voice or that of the recording `voice`."""
        options, sounds = await self._take(request, Speak, "voice", needed=0)
        seconds = self._within(self.model.reading_seconds(options.text, options.pace), "text: ")
        return await self._made(
            request, "speak", options, Wish(sounds.get("voice"), seconds, text=options.text), pace=options.pace
        )

    async def reconstruct(self, request: Request) -> Response:
        """The codec alone: encode a recording into acoustic tokens and decode it again, at any number of levels."""
        options, sounds = await self._take(request, Reconstruct, "audio")
        sound = await self._run(request, self.model.reconstruct, sounds["audio"], options.codebooks)
        levels = options.codebooks or self.model.codec.spec.num_codebooks
        how = {"verb": "reconstruct", "codebooks": levels, "prompt_seconds": 0.0, "watermark": f"{self.model.payload:04x}"}
        named = tags({"model": name_of(self.model), **how})
        headers = {"X-AudioLM-Model": name_of(self.model), **_named(f"reconstruct-{levels}.{options.format}")}
        return Response(await self._file(sound.to_bytes, f".{options.format}", named), 200, headers, MEDIA[options.format])

    async def tokenize(self, request: Request) -> Response:
        """The semantic and acoustic tokens of a recording, with one list of codes per level."""
        _, sounds = await self._take(request, Nothing, "audio")
        tokens = await self._run(request, self.model.tokenize, sounds["audio"])
        kinds = {
            name: {"codes": kind.codes.tolist(), "frame_rate": kind.spec.frame_rate, "codebook_size": kind.spec.codebook_size}
            for name, kind in (("semantic", tokens.semantic), ("acoustic", tokens.acoustic))
        }
        return JSONResponse({"seconds": tokens.seconds, **kinds})

    async def detect(self, request: Request) -> Response:
        """Was this made by audiolm? Looks for the watermark (needs 1.5 s) and for the model's own voice (needs 1 s)."""
        _, sounds = await self._take(request, Nothing, "audio")
        assert self.aside is not None
        told = await attended(request, self.aside.call(examine, sounds["audio"], self.detector, name_of(self.model)))
        return JSONResponse({"file": "audio", **told})

    async def models(self) -> dict[str, list[dict[str, Any]]]:
        """The model that this server runs, and the limits on requests."""
        model, limits, ways = self.model, self.limits, decoders(self.model.stages)
        about = {
            "id": name_of(model),
            "name": name_of(model),
            "licence": model.about.get("licence"),
            "sample_rate": model.sample_rate,
            "decoders": ways,
            "codebooks": model.codec.spec.num_codebooks,
            "own_codebooks": model.record()["codebooks"] if ways else model.codec.spec.num_codebooks,
            "bitrate": model.codec.spec.bitrate,
            "levels": {name: [stage.predict.first, stage.predict.last] for name, (stage, _) in model.stages.items()},
            "max_seconds": limits.seconds,
            "max_sound_seconds": limits.sound_seconds,
            "max_samples": limits.samples,
            "max_upload_mb": limits.upload_mb,
            "watermark": f"{model.payload:04x}",
            "speaks": "text" in model.stages,
            "sampling": {name: each.plain() for name, each in model.sampling.items()},
        }
        return {"models": [about]}

    async def healthz(self) -> dict[str, str]:
        """Whether the server works."""
        if self.worker is None or not self.worker.alive:
            raise HTTPException(503, "the model has stopped")
        return {"status": "ok"}

    async def figures(self) -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def _take(self, request: Request, kind: type[P], *names: str, needed: int = 1) -> tuple[P, dict[str, Waveform]]:
        """The parameters and decoded recordings of a request. The first `needed` of `names` are required."""
        sent = await receive(request, names, needed)
        try:
            options = parse_config(kind, sent.fields, "parameters")
            for name in names[:needed]:
                if name not in sent.files:
                    raise InputError(f"{name}: no recording was sent; send one as the form field {name!r} or as the body")
            sounds = {}
            for name, file in sent.files.items():
                keep = getattr(options, "prompt_seconds", None)
                work = self._file(sound_of, file, name, self.limits.sound_seconds, self.model.sample_rate, keep)
                sounds[name] = await work
            return options, sounds
        finally:
            sent.close()

    async def _made(
        self,
        request: Request,
        verb: str,
        options: Making,
        wish: Wish,
        prompt_seconds: float = 0.0,
        only_new: bool = False,
        pace: float = 1.0,
        until_end: bool = False,
    ) -> Response:
        """The answer to a request for one or several sounds. prompt_seconds: how much of each is not new."""
        if options.samples > self.limits.samples:
            raise InputError(f"samples={options.samples}: give {self.limits.samples} or less; send more requests for more")
        model = self.model
        headers = {
            "X-AudioLM-Model": name_of(model),
            "X-AudioLM-Seed": str(options.seed),
            "X-AudioLM-Prompt-Seconds": f"{prompt_seconds:.6f}",
        }
        way: How = {
            "only_new": only_new,
            "decoder": options.decoder,
            "codebooks": options.codebooks,
            "sampling": changed(model.sampling, options.temperatures, options.top_k, options.top_p),
            "pace": pace,
            "until_end": until_end,
        }
        new = wish.seconds if wish.semantic is None else wish.semantic.seconds
        most = max(1, round((new or 0.0) * model.sample_rate)) + round(prompt_seconds * model.sample_rate)  # samples
        assert self.worker is not None
        if options.stream:
            if options.samples > 1 or options.format != "wav":
                raise InputError("stream=true: only one WAV can be streamed; leave samples and format out")

            def start() -> Iterator[bytes]:
                blocks = model.stream(wish.prompt, wish.seconds, wish.semantic, options.seed, text=wish.text, **way)
                return wav(blocks, most, model.sample_rate, until_end)

            parts = self.worker.stream(start)
            first = await attended(request, _next(parts))  # so that errors are reported before the answer begins
            headers |= _named(f"{verb}-{options.seed}.wav")
            return StreamingResponse(self._counted(first, parts, prompt_seconds), 200, headers, MEDIA["wav"])
        seeds = range(options.seed, options.seed + options.samples)
        wishes = [replace(wish, seed=seed) for seed in seeds]
        sounds = await attended(request, self.worker.generate(wishes, way))
        self.metrics.seconds.inc(sum(each.seconds - prompt_seconds for each in sounds))
        how = {"verb": verb, "model": name_of(model), "prompt_seconds": round(prompt_seconds, 6), **model.record(**way)}
        how |= {"pace": pace} if verb == "speak" else {}
        written = []
        for seed, sound in zip(seeds, sounds, strict=True):
            ended = {"ended": sound.samples.shape[1] < most} if until_end else {}
            named = tags({"seed": seed, **how, **ended})
            written.append(await self._file(sound.to_bytes, f".{options.format}", named))
        names = [f"{verb}-{seed}.{options.format}" for seed in seeds]
        if len(written) == 1:
            return Response(written[0], 200, headers | _named(names[0]), MEDIA[options.format])
        headers |= _named(f"{verb}-{options.seed}.zip", "attachment")
        return Response(_zip(dict(zip(names, written, strict=True))), 200, headers, "application/zip")

    async def _counted(self, header: bytes, blocks: AsyncIterator[bytes], prompt_seconds: float) -> AsyncIterator[bytes]:
        """A streamed WAV, whose new sound is counted as it is sent: a listener may leave."""
        yield header
        old = prompt_seconds  # still to come
        async for block in blocks:
            yield block
            seconds = len(block) / 2 / self.model.sample_rate
            self.metrics.seconds.inc(max(0.0, seconds - old))
            old = max(0.0, old - seconds)

    def _seconds(self, options: Generate) -> float:
        if "seconds" not in options.model_fields_set:
            return min(UNTIL_END if options.until_end else LENGTH, self.limits.seconds)
        return self._within(options.seconds)

    def _within(self, seconds: float, name: str = "seconds=") -> float:
        if seconds > self.limits.seconds:
            raise InputError(
                f"{name}{seconds:g} s are more than this server generates at once; ask for {self.limits.seconds:g} s or less"
            )
        return seconds

    async def _run(self, request: Request, function: Callable[..., T], *arguments: Any) -> T:
        assert self.worker is not None
        return await attended(request, self.worker.call(function, *arguments))

    async def _file(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.files, partial(function, *arguments))


async def examples() -> list[dict[str, Any]]:
    """Example recordings."""
    return [
        {"name": path.stem.removeprefix("prompt-"), "url": f"/examples/{path.name}", "seconds": round(probe(path).seconds, 3)}
        for path in sorted(EXAMPLES.glob("*.flac"))
    ]


async def attended(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(leaving())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def name_of(model: AudioLM) -> str:
    """The model's name, reduced to characters allowed in a header."""
    return "".join(each for each in str(model.about.get("name", "audiolm")) if each.isascii() and each.isprintable())


async def _next(parts: AsyncIterator[T]) -> T:
    return await anext(parts)


def _named(file: str, how: str = "inline") -> dict[str, str]:
    """The header that names an answer's file."""
    return {"Content-Disposition": f'{how}; filename="{file}"'}


def _zip(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _file(folder: Path, name: str) -> FileResponse:
    """A file directly in the folder. The name is only compared, never joined to a path."""
    found = [path for path in folder.glob("*.*") if path.name == name and path.is_file()]
    if not found:
        raise HTTPException(404)
    return FileResponse(found[0], headers={"Cache-Control": "no-cache"})


async def _mistake(request: Request, error: Exception) -> Response:
    return problem(422, " ".join(str(error).split()))


async def _busy(request: Request, error: Exception) -> Response:
    assert isinstance(error, Busy)
    if error.retry_after is None:
        return problem(503, "the server is stopping")
    return problem(429, str(error), {"Retry-After": str(error.retry_after)})


async def _gone(request: Request, error: Exception) -> Response:
    return problem(400, "the client disconnected")  # no one receives this, but the metrics count it


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = "no such page; see /docs for what there is" if error.status_code == 404 else error.detail
    return problem(error.status_code, detail, dict(error.headers or {}))
