"""Are the words preserved? Word and character error rates of an offline recogniser (AudioLM section IV-C, Table II).

For whole clips of 4 to 10 s: the recording, the codec alone, acoustic generation, which says the recording's units in another
voice, and the transcript read aloud, if the model has a text stage. For what follows a prompt of 3 s: the same with the units
said in the prompt's voice (SoundStorm's Table 1), and PESQ against the recording, as both say the same at the same time. A free
continuation has words of its own, and so no error rate.
"""

from collections.abc import Sequence

from audiolm.asking import AcousticDecoder, Request
from audiolm.audio import Waveform
from audiolm.measuring.continuations import PROMPT, SHORTEST
from audiolm.measuring.figures.bench import Bench, Clip, Figures, Missing, at_16k
from audiolm.measuring.metrics import mean, pesq_wb, ratio
from audiolm.measuring.recognition import Recogniser, normalised, rates
from audiolm.model import AudioLM
from audiolm.route import decoders
from audiolm.tokens import Tokens
from audiolm.training.data import in_turn

LEAST, MOST = 4.0, 10.0  # seconds of a clip, as in the paper
BATCH = 8


def word_figures(bench: Bench) -> Figures:
    """CER, WER and PESQ of up to `limit` clips with transcripts, from as many speakers as possible."""
    known = [clip for clip in bench.clips if clip.transcript and LEAST <= clip.tokens.seconds <= MOST]
    if not known:
        raise Missing("WER and CER (Table II) need recordings of 4 to 10 s with a column 'transcript' in their manifest.csv")
    order = in_turn([clip.recording.speaker for clip in known], bench.seed)
    clips = [known[number] for number in order[: bench.limit]]
    said = [normalised(clip.transcript or "") for clip in clips]
    rest = [_words_after(bench, clip, text) for clip, text in zip(clips, said, strict=True)]
    after = [number for number, text in enumerate(rest) if text]
    sounds = {("whole", way): made for way, made in _whole(bench, clips).items()}
    sounds |= {("after", way): made for way, made in _after(bench, [clips[number] for number in after]).items()}
    recogniser, figures, done = Recogniser(), Figures(), 0
    figures["words.whole.clips"], figures["words.after.clips"] = float(len(clips)), float(len(after))
    for (part, way), made in sounds.items():
        texts = said if part == "whole" else [rest[number] for number in after]
        pairs = []
        for text, sound in zip(texts, made, strict=True):
            pairs.append((text, recogniser(at_16k(sound))))
            bench.tell("recognition", done := done + 1, sum(map(len, sounds.values())))
        if pairs:
            errors, words, wrong, characters = rates(pairs)
            figures[f"words.{part}.{way}.wer"], figures[f"words.{part}.{way}.cer"] = (
                ratio(errors, words),
                ratio(wrong, characters),
            )
        if part == "after" and way != "real":
            both = zip(sounds[part, "real"], made, strict=True)
            figures[f"words.{part}.{way}.pesq"] = mean(
                [pesq_wb(at_16k(real), at_16k(sound)[: len(at_16k(real))]) for real, sound in both]
            )
    return figures


def _words_after(bench: Bench, clip: Clip, text: str) -> str:
    """The words that begin after the prompt; empty if the transcript does not fit the sound or too little sound is left."""
    if clip.tokens.seconds < PROMPT + SHORTEST:
        return ""
    words = bench.aligner.words(at_16k(clip.sound), text)
    return normalised(" ".join(word.name for word in words if word.start >= PROMPT))


def _whole(bench: Bench, clips: Sequence[Clip]) -> dict[str, list[Waveform]]:
    model = bench.model
    sounds = {"real": [clip.sound for clip in clips]}
    sounds["codec"] = [model.reconstruct(sound, _levels(model), watermark=False) for sound in sounds["real"]]
    if "text" in model.stages and _decoders(bench):
        requests = [Request(text=clip.transcript, seed=bench.seed + n) for n, clip in enumerate(clips)]
        sounds["spoken"] = _generated(bench, "spoken", requests, None)
    for way, decoder in _decoders(bench).items():
        requests = [Request(semantic=clip.tokens.semantic, seed=bench.seed + n) for n, clip in enumerate(clips)]
        sounds[f"revoiced{way}"] = _generated(bench, f"revoiced{way}", requests, decoder)
    return sounds


def _after(bench: Bench, clips: Sequence[Clip]) -> dict[str, list[Waveform]]:
    """As `_whole`, for what follows the prompt, which generated sound is conditioned on."""
    model = bench.model
    frames = round(PROMPT * model.semantic.spec.frame_rate)
    sounds = {"real": [clip.sound.trim(start=PROMPT) for clip in clips]}
    sounds["codec"] = [model.reconstruct(clip.sound, _levels(model), watermark=False).trim(start=PROMPT) for clip in clips]
    for way, decoder in _decoders(bench).items():
        requests = [
            Request(
                clip.sound.trim(PROMPT),
                semantic=Tokens(clip.tokens.semantic.codes[:, frames:], model.semantic.spec),
                seed=bench.seed + n,
            )
            for n, clip in enumerate(clips)
        ]
        sounds[f"resaid{way}"] = _generated(bench, f"resaid{way}", requests, decoder)
    return sounds


def _levels(model: AudioLM) -> int | None:
    """Levels for the codec alone: as many as in generated sound."""
    return model.record()["codebooks"] if decoders(model.stages) else None


def _decoders(bench: Bench) -> dict[str, AcousticDecoder]:
    """Suffixes of names and the decoders they stand for: the paper's, and the parallel one if the model has both."""
    return dict(zip(("", "_parallel"), decoders(bench.model.stages), strict=False))


def _generated(bench: Bench, what: str, requests: Sequence[Request], decoder: AcousticDecoder | None) -> list[Waveform]:
    made: list[Waveform] = []
    for first in range(0, len(requests), BATCH):
        made += bench.model.generate_batch(requests[first : first + BATCH], decoder=decoder, watermark=False)
        bench.tell(what, len(made), len(requests))
    return made
