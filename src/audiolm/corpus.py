"""A corpus of recordings -> a token store: what the language models are trained on.

Whatever stands in the store already is skipped, so a killed job goes on; a recording that cannot be read is reported and
left out, never fatal and never silent.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from audiolm.audio import read
from audiolm.codec import Codec
from audiolm.data import AudioStore, Recording, Skipped, report
from audiolm.errors import InputError
from audiolm.token_store import Key, TokenStore, store_key
from audiolm.tokenizers import SemanticTokenizer


def tokenize_corpus(
    semantic: SemanticTokenizer,
    codec: Codec,
    source: AudioStore | Sequence[Recording],
    folder: str | os.PathLike[str],
    show: Callable[[int], None] | None = None,
) -> TokenStore:
    """Tokenize every recording of `source` that the store at `folder` does not hold yet; `show(done)` is called after each.

    InputError where the store was made by other tokenizers, or nothing could be tokenized.
    """
    store = TokenStore.create(folder, tokenizer_key(semantic, codec))
    skipped: Skipped = []
    entries = source.entries if isinstance(source, AudioStore) else source
    with store.writer() as writer, torch.inference_mode():
        for number, entry in enumerate(entries):
            if entry.name not in store:
                try:
                    audio = source.read(number) if isinstance(source, AudioStore) else _mono(source[number], codec.sample_rate)
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
            if show:
                show(number + 1)
    report(skipped, store.folder / "skipped.json")
    if not len(store):
        raise InputError(f"{folder}: no recording could be tokenized ({skipped[0][1] if skipped else 'none was given'})")
    return store


def encode(tokenizer: SemanticTokenizer | Codec, audio: Tensor, grid: int) -> Tensor:
    """Codes (Q, F) of samples (T,), padded with silence to a multiple of `grid` samples, so that both kinds end together."""
    device = next(tokenizer.parameters()).device
    padded = nn.functional.pad(audio, (0, -len(audio) % grid))[None, None].to(device)
    return tokenizer.encode(padded)[0].cpu()


def tokenizer_key(semantic: SemanticTokenizer, codec: Codec) -> Key:
    """What identifies the tokens of these tokenizers: hashes of their weights, specifications, rate, layer and k."""
    return store_key(
        codec.sample_rate,
        {"semantic": (semantic.spec, weights_hash(semantic)), "acoustic": (codec.spec, weights_hash(codec.coder()))},
        layer=semantic.layer,
        k=semantic.spec.codebook_size,
    )


def weights_hash(module: nn.Module | Mapping[str, Tensor]) -> str:
    """16 hex digits of what a tokenizer computes with; a codebook's training averages do not count."""
    digest = hashlib.sha256()
    state = module.state_dict() if isinstance(module, nn.Module) else module
    for name, tensor in sorted(state.items()):
        if not name.endswith((".count", ".total")):
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _mono(recording: Recording, sample_rate: int) -> Tensor:
    return read(recording.path, minimum_seconds=0.1).mono().resample(sample_rate).samples[0]
