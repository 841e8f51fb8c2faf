"""Plots of waveforms with spectrograms, and of codes. Needs matplotlib (the extra `plot`), imported only when drawing."""

import io
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from audiolm.errors import InputError
from audiolm.files import check_place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 2000  # of the picture at most, for any length of sound
ROWS = 192
TOP_HERTZ = 8000
RANGE_DECIBELS = 70
WAVE, PROMPT_LINE, PROMPT_TEXT = "#3b528b", "#9a9a9a", "#5a5a5a"


def check_picture(path: str | os.PathLike[str]) -> None:
    """Reject a path where no picture could be drawn, before any expensive work is done."""
    check_place(Path(path))
    if Path(path).suffix.lower() not in {".png", ".svg", ".pdf", ".jpg"}:
        raise InputError(f"{path}: cannot draw '{Path(path).suffix}' files; name a .png, .svg, .pdf or .jpg file")
    if find_spec("matplotlib") is None:
        raise InputError(f"{path}: pictures need matplotlib; run: pip install audiolm[plot]")


def picture(
    samples: Tensor, sample_rate: int, prompt_seconds: float | None = None, title: str | None = None, kind: str = "png"
) -> bytes:
    """Draw `samples` (T,) above a mel-scaled spectrogram, 0 to 8 kHz, with a grey line where the prompt ends.

    `kind`: png, svg, pdf or jpg. ImportError if matplotlib is missing.
    """
    from matplotlib.figure import Figure  # not pyplot, which opens windows and keeps global state

    length = len(samples) / sample_rate
    figure = Figure(figsize=(10, 4.8), dpi=120, layout="constrained")
    wave, spectrogram = figure.subplots(2, 1, sharex=True, height_ratios=[1, 2])
    peak = _draw_wave(wave, samples, length)
    _draw_spectrogram(spectrogram, samples, sample_rate, length)
    wave.set_title(title or f"{length:.1f} s, {sample_rate / 1000:g} kHz", loc="left", fontsize=11)
    if prompt_seconds is not None and prompt_seconds < length:
        for axes in (wave, spectrogram):
            axes.axvline(prompt_seconds, color=PROMPT_LINE, linewidth=2)
        for offset, label, side in ((-6, "prompt", "right"), (6, "continuation", "left")):
            place = {"xytext": (offset, -4), "textcoords": "offset points", "ha": side, "va": "top"}
            wave.annotate(label, (prompt_seconds, peak), color=PROMPT_TEXT, fontsize=9, **place)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind)
    return buffer.getvalue()


def codes_picture(codes: Tensor, seconds: float) -> bytes:
    """Draw codes (Q, F) as a PNG: one row per level, the first on top, and one colour per code.

    ImportError if matplotlib is missing.
    """
    from matplotlib.figure import Figure

    levels = len(codes)
    figure = Figure(figsize=(10, 0.7 + 0.12 * max(2, levels)), dpi=72, layout="constrained")
    axes = figure.subplots()
    # Neighbouring codes are not related: steps of the golden ratio give them distant colours.
    colours = (codes.double() * 0.618034 + torch.arange(levels)[:, None] * 0.13) % 1
    axes.imshow(
        colours.numpy(), aspect="auto", interpolation="none", cmap="twilight", vmin=0, vmax=1, extent=(0, seconds, levels, 0)
    )
    axes.set(xlabel="seconds", ylabel="level", yticks=[0.5, levels - 0.5] if levels > 1 else [0.5])
    axes.set_yticklabels(["1", str(levels)] if levels > 1 else ["1"])
    axes.spines[:].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_wave(axes: "Axes", samples: Tensor, length: float) -> float:
    """Draw the extremes of each column. Returns the height of the axes, which leaves room for the labels."""
    step = -(-len(samples) // COLUMNS)
    columns = torch.nn.functional.pad(samples[None], (0, -len(samples) % step), mode="replicate").reshape(-1, step)
    seconds = np.linspace(0, length, len(columns))
    axes.fill_between(seconds, columns.amin(1).numpy(), columns.amax(1).numpy(), color=WAVE, linewidth=0.7)
    height = 1.45 * max(1e-3, float(samples.abs().max()))
    axes.set(ylim=(-height, height), ylabel="amplitude")
    axes.spines[["top", "right"]].set_visible(False)
    return height


def _draw_spectrogram(axes: "Axes", samples: Tensor, sample_rate: int, length: float) -> None:
    window = max(64, round(0.032 * sample_rate))
    hop = max(1, window // 8, -(-len(samples) // COLUMNS))
    spectrum = torch.stft(samples, window, hop, window=torch.hann_window(window), pad_mode="constant", return_complex=True)
    top = min(TOP_HERTZ, sample_rate / 2)
    # Rows are evenly spaced in mel; each interpolates the power of the two nearest bins.
    hertz = 700 * (10 ** (np.linspace(0, _mel(top), ROWS) / 2595) - 1)
    bins = torch.from_numpy(hertz / sample_rate * window).clamp(max=len(spectrum) - 1)
    low = bins.long().clamp(max=len(spectrum) - 2)
    power = spectrum.abs().square()
    power = torch.lerp(power[low], power[low + 1], (bins - low)[:, None].float())
    decibels = 10 * torch.log10(power + 1e-10)
    loudest = float(decibels.max())
    axes.imshow(
        decibels.numpy(),
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
        cmap="magma",
        vmin=loudest - RANGE_DECIBELS,
        vmax=loudest,
        extent=(0, length, 0, _mel(top)),
    )
    ticks = [tick for tick in (0, 500, 1000, 2000, 4000, 8000) if tick <= top]
    axes.set_yticks([_mel(tick) for tick in ticks], [f"{tick / 1000:g}" for tick in ticks])
    axes.set(xlim=(0, length), xlabel="seconds", ylabel="kHz (mel scale)")


def _mel(hertz: float) -> float:
    return 2595 * float(np.log10(1 + hertz / 700))
