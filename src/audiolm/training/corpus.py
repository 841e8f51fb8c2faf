"""Tokenise a corpus of recordings into a token store, on which the language models are trained.

    plan_shards       divides what is not in the store yet into shards of about an hour
    tokenize_shard    makes one shard: the only function that does work; any process, on any machine, may call it
    tokenize_corpus   makes all shards in this process; audiolm.training.cluster does the same on many machines

Recordings already in the store are skipped, so a killed job resumes where it was and ends with the same store. A recording
that cannot be read is reported and left out; it never stops the job and is never dropped silently.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from audiolm.audio import read
from audiolm.bundle import TRAINING_ONLY
from audiolm.codec import Codec
from audiolm.errors import InputError
from audiolm.tokenizers import SemanticTokenizer
from audiolm.training.audio_store import Entry
from audiolm.training.data import Recording, Skipped, report
from audiolm.training.storage import fetched
from audiolm.training.token_store import Key, TokenStore, TokenWriter, store_key

SHARD_SECONDS = 3600.0


class Decoded(Protocol):
    """Decoded recordings at one sample rate, such as an `AudioStore`."""

    entries: list[Entry]
    sample_rate: int

    def read(self, number: int) -> Tensor: ...


Source = Decoded | Sequence[Recording]


def tokenize_corpus(
    semantic: SemanticTokenizer,
    codec: Codec,
    source: Source,
    folder: str | os.PathLike[str],
    show: Callable[[int], None] | None = None,
    *,
    shard_seconds: float = SHARD_SECONDS,
    skipped: Skipped | None = None,
) -> TokenStore:
    """Tokenize every recording of `source` that the store at `folder` does not hold yet; `show(done)` is called after each.

    `skipped`: recordings left out earlier, to be reported with the others on stderr and in the store's skipped.json. `folder`
    may be in an object store. Raises InputError if the store was made by other tokenizers or nothing could be tokenized.
    """
    store = TokenStore.create(folder, tokenizer_key(semantic, codec))
    plan, left_out = plan_shards(store, source, shard_seconds), list(skipped or [])
    done = len(_entries(source)) - sum(map(len, plan.values()))
    for shard, numbers in plan.items():
        shown = None if show is None else lambda count, before=done: show(before + count)
        left_out += tokenize_shard(semantic, codec, source, numbers, store.folder, shard, shown)
        done += len(numbers)
    return finish(store.folder, left_out)


def plan_shards(store: TokenStore, source: Source, shard_seconds: float = SHARD_SECONDS) -> dict[int, list[int]]:
    """Number of each shard to write -> indices in `source` of its recordings, all of which the store does not hold yet.

    Recordings that an earlier job could not read come last, so that the other shards stay the same after a killed job.
    """
    plan: dict[int, list[int]] = {}
    unused, entries = store.unused(), _entries(source)
    missing = [number for number, entry in enumerate(entries) if entry.name not in store]
    for again in (False, True):
        group, seconds = [], shard_seconds
        for number in missing:
            if (entries[number].name in store.skipped) is again:
                if seconds >= shard_seconds:
                    group, seconds = plan.setdefault(next(unused), []), 0.0
                group.append(number)
                seconds += _seconds(source, number)
    return plan


def tokenize_shard(
    semantic: SemanticTokenizer,
    codec: Codec,
    source: Source,
    numbers: Sequence[int],
    folder: Path,
    shard: int,
    show: Callable[[int], None] | None = None,
) -> Skipped:
    """Tokenize the recordings `numbers` of `source` and write them as shard `shard`; returns what was left out, and why."""
    writer = TokenWriter(folder, {"semantic": semantic.spec, "acoustic": codec.spec}, shard)
    entries, skipped = _entries(source), []
    with torch.inference_mode():
        for count, number in enumerate(numbers, 1):
            entry = entries[number]
            try:
                audio = _mono(source[number], codec.sample_rate) if isinstance(source, Sequence) else source.read(number)
                writer.add(
                    entry.name,
                    {"semantic": encode(semantic, audio, semantic.hop), "acoustic": encode(codec, audio, semantic.hop)},
                    seconds=len(audio) / codec.sample_rate,
                    speaker=entry.speaker,
                    split=entry.split,
                    columns=entry.columns,
                )
            except InputError as error:
                skipped.append((entry.name, str(error)))
                writer.skip(*skipped[-1])
            if show:
                show(count)
    writer.flush()
    return skipped


def finish(folder: Path, skipped: Skipped) -> TokenStore:
    """Open the store that a job has filled, and report what was left out of it. Raises InputError if it is empty."""
    store = TokenStore(folder)
    left_out = store.skipped | dict(skipped)
    report(list(left_out.items()), folder / "skipped.json")
    if not len(store):
        reason = next(iter(left_out.values()), "none was given")
        raise InputError(f"{folder}: no recording could be tokenized ({reason})")
    return store


def encode(tokenizer: SemanticTokenizer | Codec, audio: Tensor, grid: int) -> Tensor:
    """Codes (Q, F) of samples (T,), padded with silence to a multiple of `grid` samples so that both streams end together."""
    device = next(iter(tokenizer.state_dict().values())).device  # of parameters or buffers: some networks have only either
    padded = nn.functional.pad(audio, (0, -len(audio) % grid))[None, None].to(device)
    return tokenizer.encode(padded)[0].cpu()


def tokenizer_key(semantic: SemanticTokenizer, codec: Codec) -> Key:
    """The key that identifies these tokenizers' tokens: weight hashes, specifications, sample rate, layer and k."""
    return store_key(
        codec.sample_rate,
        {"semantic": (semantic.spec, weights_hash(semantic)), "acoustic": (codec.spec, weights_hash(codec.coder()))},
        layer=semantic.layer,
        k=semantic.spec.codebook_size,
    )


def weights_hash(module: nn.Module | Mapping[str, Tensor]) -> str:
    """Hash, 16 hex digits, of the weights a tokenizer computes with; a codebook's training averages are excluded."""
    digest = hashlib.sha256()
    state = module.state_dict() if isinstance(module, nn.Module) else module
    for name, tensor in sorted(state.items()):
        if not name.endswith(TRAINING_ONLY):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _entries(source: Source) -> Sequence[Any]:
    return source if isinstance(source, Sequence) else source.entries


def _seconds(source: Source, number: int) -> float:
    return source[number].seconds if isinstance(source, Sequence) else source.entries[number].length / source.sample_rate


def _mono(recording: Recording, sample_rate: int) -> Tensor:
    with fetched(recording.path) as path:
        return read(path, minimum_seconds=0.1).mono().resample(sample_rate).samples[0]
