"""What a stage's language model sounds like during training: a fixed set of prompts, continued and decoded."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from audiolm.audio import Waveform
from audiolm.generation import complete
from audiolm.stages import Stage
from audiolm.tokenizers import Decoder
from audiolm.training.token_store import Batches
from audiolm.transformer import LanguageModel

COUNT, SECONDS, PROMPT = 2, 3.0, 1.0  # items, how much of each, and how much of that is the prompt


def stage_listener(stage: Stage, codec: Decoder, batches: Batches) -> Callable[[LanguageModel], dict[str, Waveform]] | None:
    """A function that takes the stage's model and returns its continuations of the first items.

    The prompt is a second of each item, at most a third of it. With each continuation comes the sound of the item's
    own codes. None for a stage whose codes the codec cannot decode (semantic ones).
    """
    predict = stage.predict
    if predict.spec.name != codec.spec.name:
        return None
    lower = next((n for n, stream in enumerate(stage.given) if stream.spec.name == predict.spec.name), None)
    if predict.first and lower is None:
        return None
    items = [
        [codes[:, : own.frames(SECONDS)] for own, codes in zip(stage.streams, (*each["given"], each["predicted"]), strict=True)]
        for each in batches.batch(0)[:COUNT]
    ]

    def sound(parts: Sequence[Tensor], predicted: Tensor) -> Waveform:
        codes = predicted if lower is None or not predict.first else torch.cat([parts[lower][:, : predicted.shape[1]], predicted])
        return Waveform(codec.decode(codes[None].to(device_of(codec)))[0].float().cpu(), codec.sample_rate)

    @torch.no_grad()
    def listen(model: LanguageModel) -> dict[str, Waveform]:
        sounds: dict[str, Waveform] = {}
        for number, (*given, known) in enumerate(items):
            start = min(predict.frames(PROMPT), known.shape[1] // 3)
            made = complete(model, stage, [given], [known[:, :start]], [known.shape[1] - start], [number])[0]
            sounds |= {f"{number}": sound(given, made), f"{number}-true": sound(given, known)}
        return sounds

    return listen


def device_of(codec: Decoder) -> torch.device:
    """The device of its weights; the CPU if it has none."""
    weights = codec.parameters() if isinstance(codec, nn.Module) else iter(())
    return next((weight.device for weight in weights), torch.device("cpu"))
