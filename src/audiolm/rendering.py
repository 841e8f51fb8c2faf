"""Turns acoustic codes into the final sound: decodes them as they arrive, joins them to the prompt and adds the watermark."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from audiolm.codec import Codec
from audiolm.provenance import Marker


def new_sound(
    codec: Codec, codes: Iterable[Tensor], samples: int, old: int = 0, last: Tensor | None = None, payload: int | None = None
) -> Iterator[Tensor]:
    """The new sound in blocks (1, n), from blocks of acoustic codes (Q, n) that start with the prompt's: at most `samples`.

    old: samples at the start that belong to the prompt and are dropped; only the last of them are decoded, as many as the
    decoder's `memory`, so that a long prompt costs nothing here. last: the prompt's last sample (1, 1) if the new sound directly
    follows it. payload: of the watermark; None leaves it out.
    """
    skipped = max(0, old // codec.hop - codec.body.memory)
    sounds = _unmarked(codec, _after(codes, skipped), samples, old - skipped * codec.hop, last)
    if payload is None:
        yield from sounds
        return
    marker = Marker(payload, codec.sample_rate)
    for sound in sounds:
        if (ready := marker.push(sound)).shape[1]:
            yield ready
    if (rest := marker.flush()).shape[1]:
        yield rest


def _unmarked(codec: Codec, codes: Iterable[Tensor], samples: int, old: int, last: Tensor | None) -> Iterator[Tensor]:
    # The prompt and the decoded sound differ by a step where they meet; fade it out over 5 ms.
    fade, step, made = torch.linspace(1, 0, min(codec.sample_rate // 200, samples)), torch.zeros(1, 1), 0
    for sound in _decoded(codec, codes):
        if last is not None and 0 < old <= sound.shape[1]:
            step = last.cpu() - sound[:, old - 1 : old]
        sound, old = sound[:, old:][:, : samples - made].clone(), max(0, old - sound.shape[1])
        sound[:, : max(0, len(fade) - made)] += step * fade[made : made + sound.shape[1]]
        made += sound.shape[1]
        if sound.shape[1]:
            yield sound


def _after(codes: Iterable[Tensor], skipped: int) -> Iterator[Tensor]:
    """Blocks of codes without the first `skipped` frames."""
    for part in codes:
        if skipped < part.shape[1]:
            yield part[:, skipped:]
        skipped = max(0, skipped - part.shape[1])


def _decoded(codec: Codec, codes: Iterable[Tensor]) -> Iterator[Tensor]:
    decoder, device = codec.decoder_stream(), next(codec.parameters()).device
    for part in codes:
        yield decoder.push(part[None].to(device))[0].float().cpu()
    yield decoder.flush()[0].float().cpu()
