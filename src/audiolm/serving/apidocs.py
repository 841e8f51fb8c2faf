"""The parameters of the HTTP API, their OpenAPI description, and the /docs page, which works offline."""

from collections.abc import Callable, Mapping
from html import escape
from typing import Any, Literal

from fastapi import Response
from pydantic import Field

from audiolm.asking import LENGTH, AcousticDecoder
from audiolm.config import Config
from audiolm.model import AudioLM
from audiolm.route import decoders
from audiolm.serving.limits import Limits
from audiolm.serving.uploads import SHORTEST
from audiolm.text import FASTEST, SLOWEST

MEDIA = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "opus": "audio/ogg; codecs=opus"}
NUMBER = r"([0-9]{1,3}|[0-9]{0,3}\.[0-9]{1,9})"


class Nothing(Config):
    """No parameters."""


class Sound(Config):
    """Parameters of all endpoints that answer with sound."""

    format: Literal["wav", "flac", "ogg", "opus"] = Field(default="wav", description="File format of the answer.")


class Making(Sound):
    """Parameters of all endpoints that generate."""

    seed: int = Field(default=0, ge=0, lt=2**32, description="The same seed gives the same sound.")
    samples: int = Field(
        default=1, ge=1, description="Number of sounds, with the seeds `seed`, `seed` + 1, ...; several come as a zip file."
    )
    temperature: str | None = Field(
        default=None,
        pattern=rf"^{NUMBER}(,{NUMBER},{NUMBER})?$",
        description="One number for all stages, or three for semantic,coarse,fine, as 0.6,0.8,0.6. 0 takes the likeliest code.",
    )
    top_k: int | None = Field(default=None, ge=1, lt=2**31, description="Sample from the k likeliest codes only.")
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Sample only from the likeliest codes whose probabilities add up to this (nucleus sampling).",
    )
    decoder: AcousticDecoder | None = Field(
        default=None, description="How semantic tokens become acoustic ones, if the model can do both. Default: the model's own."
    )
    codebooks: int | None = Field(
        default=None,
        ge=1,
        description="Number of acoustic levels. Default: the model's own. Few levels are faster, as they need no fine stage.",
    )
    stream: bool = Field(default=False, description="Send a WAV while it is being generated; for a single sample.")

    @property
    def temperatures(self) -> list[float]:
        """The numbers of `temperature`: none, one or three."""
        return [float(value) for value in self.temperature.split(",")] if self.temperature else []


class Generate(Making):
    """New sound without a prompt."""

    seconds: float = Field(
        default=LENGTH,
        ge=SHORTEST,
        description="Seconds of new sound; with until_end the most, then 30 by default.",
    )
    until_end: bool = Field(
        default=False,
        description="Stop where the model says that the recording ends. A streamed WAV then states no length.",
    )


class Continue(Generate):
    """New sound after a recording."""

    prompt_seconds: float | None = Field(
        default=None, ge=SHORTEST, description="Use only this many seconds from the start of the recording."
    )
    only_new: bool = Field(default=False, description="Leave the recording out of the answer.")


class Revoice(Making):
    """The content of a recording in another voice, as long as it to within 40 ms."""


class Speak(Making):
    """A text, read aloud."""

    text: str = Field(min_length=1, max_length=4000, description="What to say. Punctuation makes pauses.")
    pace: float = Field(
        default=1.0,
        ge=SLOWEST,
        le=FASTEST,
        description="1: that of the recordings the model was trained on; 0.8: slower.",
    )


class Reconstruct(Sound):
    """The codec alone."""

    codebooks: int | None = Field(default=None, ge=1, description="Number of levels to keep. Default: all.")


PROBLEMS = {
    400: "Malformed or incomplete request, or unknown host name",
    401: "No valid API key",
    403: "Request from a page of another site",
    408: "The request arrived too slowly",
    413: "Larger or longer than this server accepts",
    415: "Neither a form nor a recording",
    422: "A parameter or recording is invalid; the detail says what to do about it",
    429: "Too many requests, or the server is busy; Retry-After says when to try again",
    503: "Not done in time, too many requests at once, or the server is stopping",
}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}
_CODES = {
    "type": "object",
    "required": ["codes", "frame_rate", "codebook_size"],
    "properties": {
        "codes": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
        "frame_rate": {"type": "number"},
        "codebook_size": {"type": "integer"},
    },
}
TOKENS = {
    "type": "object",
    "required": ["seconds", "semantic", "acoustic"],
    "properties": {"seconds": {"type": "number"}, "semantic": _CODES, "acoustic": _CODES},
}
MARK = {
    "type": "object",
    "required": ["file", "synthetic_probability", "watermark"],
    "properties": {
        "file": {"type": "string"},
        "synthetic_probability": {"type": ["number", "null"]},
        "watermark": {
            "type": "object",
            "required": ["found", "payload", "confidence"],
            "properties": {
                "found": {"type": "boolean"},
                "payload": {"type": ["string", "null"]},
                "confidence": {"type": "number"},
            },
        },
        "synthetic_share": {"type": ["number", "null"]},
        "note": {"type": "string"},
    },
}
METRICS: dict[int | str, Any] = {200: {"description": "Figures", "content": {"text/plain": {"schema": {"type": "string"}}}}}
_HEADERS = {
    "X-AudioLM-Model": {"description": "The model's name", "schema": {"type": "string"}},
    "X-AudioLM-Seed": {"description": "The (first) seed", "schema": {"type": "string"}},
    "X-AudioLM-Prompt-Seconds": {"description": "Where the new sound begins, in seconds", "schema": {"type": "string"}},
}


def errors(*statuses: int) -> dict[int | str, Any]:
    """OpenAPI descriptions of the answers with these statuses."""
    problem = {"application/problem+json": {"schema": _PROBLEM}}
    return {status: {"description": PROBLEMS[status], "content": problem} for status in statuses}


def operation(
    kind: type[Config],
    recordings: tuple[str, ...],
    limits: Limits,
    model: AudioLM,
    answer: Mapping[str, Any] | None = None,
    needed: int = 1,
) -> dict[str, Any]:
    """Arguments for a FastAPI route: its parameters, its body, and its answers, which are JSON (schema `answer`) or sound.

    needed: how many of the recordings, the first ones, must be sent.
    """
    known = _parameters(kind, limits, model)
    # OpenAPI cannot say "in the URL or in the form": what must be given is described in the form only.
    required = [name for name, field in kind.model_fields.items() if field.is_required()]
    parameters = [
        {"name": name, "in": "query", "description": schema["description"], "schema": _without(schema, "description")}
        for name, schema in known.items()
        if name not in required
    ]
    binary = {"type": "string", "format": "binary"}
    form = {
        "type": "object",
        "properties": {**dict.fromkeys(recordings, binary), **known},
        "required": [*recordings[:needed], *required],
        "additionalProperties": False,
    }
    body: dict[str, Any] = {"content": {"multipart/form-data": {"schema": form}}, "required": bool(form["required"])}
    if not recordings[:needed]:
        fields = form | {"properties": known}
        body["content"]["application/x-www-form-urlencoded"] = {"schema": fields}
    if recordings and not required:
        body["content"] |= {media: {"schema": binary} for media in ("audio/wav", "audio/flac", "audio/ogg", "audio/mpeg")}
    if answer is None:
        binaries = {media.partition(";")[0]: {"schema": binary} for media in MEDIA.values()}
        if issubclass(kind, Making):
            binaries["application/zip"] = {"schema": binary}
        headers = _HEADERS if issubclass(kind, Making) else {"X-AudioLM-Model": _HEADERS["X-AudioLM-Model"]}
        done = {"description": "The sound", "content": binaries, "headers": headers}
    else:
        done = {"description": "Done", "content": {"application/json": {"schema": answer}}}
    return {
        "openapi_extra": {"parameters": parameters, "requestBody": body},
        "responses": {200: done, **errors(*PROBLEMS)},
        "response_class": Response,
    }


def locked(document: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The OpenAPI document of a server that has API keys: how they are shown, and where they are needed."""
    told = document()
    told.setdefault("components", {})["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    for path, operations in told["paths"].items():
        if path.startswith("/v1/") or path == "/metrics":
            for each in operations.values():
                each["security"] = [{"bearer": []}, {"key": []}]
    return told


def page(document: Mapping[str, Any]) -> str:
    """The OpenAPI document as one HTML page without scripts."""
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><title>AudioLM: HTTP API</title>",
        "<meta name=viewport content='width=device-width, initial-scale=1'>",
        "<link rel=icon href=icon.svg><link rel=stylesheet href=style.css></head><body><main>",
        "<h1>AudioLM: HTTP API</h1><p>For machines: <a href=openapi.json>openapi.json</a>. ",
        "Parameters go in the URL or in the form. A recording is a file of the form, or the request body with its audio/* type. ",
        "Errors are application/problem+json: <code>detail</code> says what to do.</p>",
        "<pre>curl -F audio=@prompt.wav 'http://127.0.0.1:8000/v1/continue?seconds=5' -o out.wav</pre>",
    ]
    for path, operations in document["paths"].items():
        for method, each in operations.items():
            parts.append(f"<h2>{escape(method.upper())} {escape(path)}</h2><p>{escape(each.get('description', ''))}</p>")
            rows = [(one["name"], one["schema"], one["description"]) for one in each.get("parameters", [])]
            form = each.get("requestBody", {}).get("content", {}).get("multipart/form-data", {}).get("schema", {})
            files = [name for name, schema in form.get("properties", {}).items() if schema.get("format") == "binary"]
            texts = [(name, form["properties"][name]) for name in form.get("required", []) if name not in files]
            rows = [(name, schema, f"{schema['description']} Required.") for name, schema in texts] + rows
            rows = [(name, {"type": "recording"}, "" if name in form["required"] else "Optional.") for name in files] + rows
            if rows:
                parts.append("<table><thead><tr><th>parameter<th>values<th>default<th>meaning</thead><tbody>")
                for name, schema, text in rows:
                    cells = (name, _values(schema), str(schema.get("default", "")), text)
                    parts.append("<tr>" + "".join(f"<td>{escape(cell)}" for cell in cells))
                parts.append("</tbody></table>")
    return "".join(parts) + "</main></body></html>"


def _parameters(kind: type[Config], limits: Limits, model: AudioLM) -> dict[str, dict[str, Any]]:
    """JSON schemas by parameter name, with the limits of this server and model."""
    bounds = {
        "seconds": {"maximum": limits.seconds, "default": min(LENGTH, limits.seconds)},
        "samples": {"maximum": limits.samples},
        "codebooks": {"maximum": model.codec.spec.num_codebooks},
        "decoder": {"enum": decoders(model.stages)},
    }
    found = {}
    for name, schema in kind.model_json_schema().get("properties", {}).items():
        some = next((each for each in schema.get("anyOf", []) if each.get("type") != "null"), {})  # None means left out
        plain = _without(schema, "anyOf", "title") | some | bounds.get(name, {})
        found[name] = plain if plain.get("default", "") is not None else _without(plain, "default")
    return found


def _without(schema: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in keys}


def _values(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(schema["enum"])
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    return " ".join([schema.get("type", ""), *(f"{word} {schema[key]:g}" for key, word in words.items() if key in schema)])
