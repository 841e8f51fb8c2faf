"""The HTML page of a report: examples of generated sound with spectrograms, similar to the paper's example page.

One self-contained file: sounds as MP3, which every browser plays, spectrograms as small PNGs, no network. All generated sound
on it carries the watermark (audiolm.provenance).
"""

import base64
import html
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiolm.asking import Request
from audiolm.audio import Waveform, blocks
from audiolm.errors import InputError
from audiolm.files import whole_file
from audiolm.measuring.metrics import needed
from audiolm.model import AudioLM
from audiolm.route import decoders
from audiolm.spectra import mel_filters
from audiolm.training.data import Recording, by_speaker
from audiolm.training.storage import fetched

PROMPT = 3.0  # seconds, as in the paper
PROMPTS = 3  # recordings shown
RATE, WINDOW, HOP, BANDS, SHADES, DECIBELS = 16_000, 512, 320, 72, 40, 70  # of the spectrograms
# The magma colour map, from black to pale yellow, in equal steps.
COLOURS = "000004 1c1044 4f127b 812581 b5367a e55064 fb8761 fec287 fcfdbf"

CREDITS = ("title", "composer", "creator", "source", "licence", "license", "attribution")  # columns of a manifest

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Example:
    """One sound on the page; a grey line marks the end of its prompt."""

    title: str
    sound: Waveform
    prompt_seconds: float | None = None


@dataclass(frozen=True)
class Section:
    """A heading, an explanation, and rows of related examples."""

    title: str
    text: str
    rows: tuple[tuple[Example, ...], ...]


def sections(
    model: AudioLM, sounds: Sequence[Waveform], seconds: float, seed: int, tell: Progress = lambda what, done, total: None
) -> list[Section]:
    """Examples of all that the model can do, from real sounds longer than 3 s, mono at its rate. Reproducible by the seed."""
    sounds = [sound.trim(PROMPT + seconds) for sound in sounds[:PROMPTS]]
    found: list[Section] = []
    prompts = [sound.trim(PROMPT) for sound in sounds]
    can = {*model.stages}
    acoustic = bool(decoders(can))
    makers: list[Callable[[], Section]] = []
    if acoustic and "semantic" in can:
        makers += [lambda: _continued(model, sounds, prompts, seconds, seed), lambda: _unconditional(model, seconds, seed)]
    if acoustic:
        makers.insert(1, lambda: _revoiced(model, sounds[:2], seed))
    if "acoustic" in can:
        makers.append(lambda: _acoustic_only(model, prompts, seconds, seed))
    makers.append(lambda: _codec(model, sounds[:2]))
    for number, make in enumerate(makers, 1):
        found.append(make())
        tell("page", number, len(makers))
    return found


def _continued(model: AudioLM, sounds: Sequence[Waveform], prompts: Sequence[Waveform], seconds: float, seed: int) -> Section:
    seeds = (seed, seed + 1)
    made = model.generate_batch([Request(prompt, seconds, seed=each) for prompt in prompts for each in seeds])
    rows = [
        (
            Example("The recording", sound),
            *(Example(f"Continuation, seed {s}", made[2 * n + k], PROMPT) for k, s in enumerate(seeds)),
        )
        for n, sound in enumerate(sounds)
    ]
    text = (
        "The model hears the first 3 s of a recording, up to the grey line, and continues it: the semantic tokens determine "
        "what comes next, the acoustic tokens in which voice."
    )
    return Section("Continuation", text, tuple(rows))


def _revoiced(model: AudioLM, sounds: Sequence[Waveform], seed: int) -> Section:
    words = [model.tokenize(sound).semantic for sound in sounds]
    seeds = (seed, seed + 1)
    made = model.generate_batch([Request(semantic=each, seed=s) for each in words for s in seeds])
    rows = [
        (Example("The recording", sound), *(Example(f"Its semantic tokens, voice {k + 1}", made[2 * n + k]) for k in range(2)))
        for n, sound in enumerate(sounds)
    ]
    text = "Only the semantic tokens of a recording are given; voice and room are drawn at random."
    return Section("Acoustic generation", text, tuple(rows))


def _unconditional(model: AudioLM, seconds: float, seed: int) -> Section:
    made = model.generate_batch([Request(seconds=seconds, seed=seed + each) for each in range(3)])
    row = tuple(Example(f"Seed {seed + number}", sound) for number, sound in enumerate(made))
    return Section("Unconditional", "Without a prompt: both content and voice are drawn at random.", (row,))


def _acoustic_only(model: AudioLM, prompts: Sequence[Waveform], seconds: float, seed: int) -> Section:
    made = model.generate_batch([Request(prompt, seconds, seed=seed) for prompt in prompts], chain="acoustic")
    row = tuple(Example(f"Prompt {number}", sound, PROMPT) for number, sound in enumerate(made, 1))
    text = (
        "The paper's baseline: the same prompts, continued with acoustic tokens only, without semantic tokens. It should "
        "keep the voice but babble."
    )
    return Section("Acoustic tokens alone", text, (row,))


def _codec(model: AudioLM, sounds: Sequence[Waveform]) -> Section:
    spec = model.codec.spec
    levels = sorted({min(3, spec.num_codebooks), spec.num_codebooks})
    rows = []
    for sound in sounds:
        rate = [f"{level} levels, {spec.bitrate * level / spec.num_codebooks / 1000:g} kbit/s" for level in levels]
        made = [Example(name, model.reconstruct(sound, level)) for name, level in zip(rate, levels, strict=True)]
        rows.append((Example("The recording", sound), *made))
    text = (
        "The codec alone limits how good generated sound can be. The first levels carry most of the sound, the others the detail."
    )
    return Section("Codec", text, tuple(rows))


def real_sounds(
    model: AudioLM, recordings: Sequence[Recording], count: int, seconds: float, seed: int
) -> list[tuple[Recording, Waveform]]:
    """The first 3 s plus `seconds` of up to `count` recordings, from as many speakers as possible, mono at the model's rate.

    Recordings of at least that length come first; those shorter than 4 s or unreadable are skipped.
    """
    order = by_speaker([each for each in recordings if each.seconds >= PROMPT + 1], seed)
    order.sort(key=lambda each: each.seconds < PROMPT + seconds)
    found: list[tuple[Recording, Waveform]] = []
    for each in order:
        if len(found) == count:
            break
        with suppress(InputError), fetched(each.path) as path:
            found.append((each, next(blocks(path, PROMPT + seconds, model.sample_rate, mono=True))))
    return found


# HTML


def write_page(
    path: Path,
    model: AudioLM,
    recordings: Sequence[Recording],
    report: Mapping[str, Any],
    tables: str,
    seconds: float = 7.0,
    seed: int = 0,
    tell: Progress = lambda what, done, total: None,
) -> None:
    """Generate the examples and write the page; if no recording has 4 s, it has only the tables.

    tables: the report in Markdown, from audiolm.measuring.report.
    """
    found = real_sounds(model, recordings, PROMPTS, seconds, seed)
    parts = sections(model, [sound for _, sound in found], seconds, seed, tell) if found else []
    text = page(parts, report, tables, [recording for recording, _ in found])
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(parts: Sequence[Section], report: Mapping[str, Any], tables: str, heard: Sequence[Recording] = ()) -> str:
    """A report as HTML. heard: the recordings in it, credited as their manifest states."""
    name = str(report.get("model", "AudioLM"))
    links = "".join(f'<a href="#{_anchor(part.title)}">{html.escape(part.title)}</a>' for part in parts)
    unheard = " that it was not trained on" if report.get("recordings.train") == 0 else ""
    groups = f"{report.get('recordings.speakers', 'some')} {report.get('recordings.by', 'speakers')}"
    facts = f"seed {report.get('seed', 0)} · {html.escape(str(report.get('versions', '')))}"
    body = f"""<h1>AudioLM &ldquo;{html.escape(name)}&rdquo;: examples and figures</h1>
<p>An <a href="https://arxiv.org/abs/2209.03143">AudioLM</a>, with examples and measurements on recordings of
{groups}{unheard}. All generated sound here carries an inaudible watermark that
<code>audiolm detect</code> finds.</p>
<p class=quiet>Made by <code>{html.escape(str(report.get("command", "")))}</code><br>{facts} ·
all figures: <a href="report.json">report.json</a></p>
<nav aria-label="Sections">{links}{'<a href="#recordings">Recordings</a>' if heard else ""}<a href="#figures">Figures</a></nav>
{"".join(map(_section, parts))}{_credits(heard) if heard else ""}
<section id=figures><h2>Figures</h2>{rendered(tables)}</section>"""
    return document(f"AudioLM {name}", body, asset("page.js"))


def document(title: str, body: str, script: str) -> str:
    """A complete page with inline style and script. `body` and `script` are inserted unescaped."""
    return f"""<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width, initial-scale=1">
<meta http-equiv=Content-Security-Policy content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; media-src data: blob:">
<title>{html.escape(title)}</title>
<style>{asset("page.css")}</style>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""  # noqa: E501


def rendered(markdown: str) -> str:
    """Markdown as HTML, in which wide tables scroll on their own."""
    text = needed("markdown_it").MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    return text.replace("<table>", '<div class=table tabindex=0 role=region aria-label="table"><table>').replace(
        "</table>", "</table></div>"
    )


def asset(name: str) -> str:
    """The text of a stylesheet or script next to this file."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _credits(heard: Sequence[Recording]) -> str:
    lines = []
    for each in heard:
        told = [each.columns[name].strip() for name in CREDITS if each.columns.get(name, "").strip()]
        lines.append(f"<li>{html.escape(', '.join([f'{each.name} (speaker {each.speaker})', *told]))}</li>")
    text = "Credits, as far as the manifest states them. Sound derived from a recording remains under its licence."
    return f"<section id=recordings><h2>Recordings</h2><p>{text}</p><ol>{''.join(lines)}</ol></section>"


def _section(part: Section) -> str:
    longest = max(example.sound.seconds for row in part.rows for example in row)
    rows = "".join(f"<div class=row>{''.join(_figure(example, longest) for example in row)}</div>" for row in part.rows)
    return f"<section id={_anchor(part.title)}><h2>{html.escape(part.title)}</h2><p>{html.escape(part.text)}</p>{rows}</section>"


def _figure(example: Example, longest: float) -> str:
    sound, share = example.sound, 100 * example.sound.seconds / longest
    end, spoken = "", f"{example.title}, {sound.seconds:.1f} seconds"
    if example.prompt_seconds is not None:
        end = f'<span class=end style="left:{share * example.prompt_seconds / sound.seconds:.2f}%"></span>'
        spoken += f"; the prompt ends at {example.prompt_seconds:g} seconds"
    return f"""<figure><figcaption>{html.escape(example.title)} <small>{sound.seconds:.1f} s</small></figcaption>
<div class=picture><img alt="Spectrogram" src="{_data("image/png", spectrogram(sound))}" style="width:{share:.2f}%">{end}<span class=cursor></span></div>
<audio controls preload=metadata aria-label="{html.escape(spoken)}" src="{sound_source(sound)}"></audio></figure>"""  # noqa: E501


def sound_source(sound: Waveform) -> str:
    """A sound as a data: URL."""
    return _data("audio/mpeg", sound.mono().resample(RATE).to_bytes(".mp3"))


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


# Spectrograms


def spectrogram(sound: Waveform) -> bytes:
    """A PNG of 72 mel bands up to 8 kHz, lowest at the bottom, one column per 20 ms, with a range of 70 dB."""
    samples = sound.mono().resample(RATE).samples[0].detach().cpu()
    spectrum = torch.stft(samples, WINDOW, HOP, window=torch.hann_window(WINDOW), pad_mode="constant", return_complex=True)
    level = 10 * (mel_filters(RATE, WINDOW, BANDS) @ spectrum.abs().square() + 1e-10).log10()
    shades = ((level - level.max()) / DECIBELS + 1).clamp(0, 1) * (SHADES - 1)
    return _png(shades.round().to(torch.uint8).flip(0), _palette(SHADES))


def _palette(size: int) -> bytes:
    colours = torch.tensor([list(bytes.fromhex(colour)) for colour in COLOURS.split()]).float()
    places = torch.linspace(0, len(colours) - 1, size)
    low = places.floor().long().clamp(max=len(colours) - 2)
    return bytes(torch.lerp(colours[low], colours[low + 1], (places - low)[:, None]).round().to(torch.uint8).flatten().tolist())


def _png(pixels: Tensor, palette: bytes) -> bytes:
    """Palette indices (rows, columns) as a PNG file."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows, columns = pixels.shape
    lines = b"".join(b"\0" + bytes(line) for line in pixels.tolist())
    head = struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)
    image = chunk(b"IHDR", head) + chunk(b"PLTE", palette) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image
