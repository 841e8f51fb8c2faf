"""Real or generated? The paper's listening test (AudioLM section IV-G): its raters reached 51.2 %, p = 0.23, which is chance.

All clips have the same length and went through the codec, so that its artefacts give no hint. Half (rounded up) are real; the
others are 3 s of a real prompt and the model's continuation. The page lets raters save their answers as a file. The correct
answers are in a separate file, so that the page's source does not give them away.

    listening.html        the test: one file, no network
    listening-key.json    the correct answers; keep them from the raters
    audiolm ratings RATINGS... --key listening-key.json
"""

import hashlib
import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator

from audiolm.asking import Request
from audiolm.audio import Waveform
from audiolm.errors import InputError
from audiolm.files import whole_file
from audiolm.measuring.page import PROMPT, asset, document, sound_source
from audiolm.model import AudioLM

ANSWERS = ("real", "generated")
SEAM = 0.005  # seconds of crossfade between a prompt and its continuation
KEY = "listening-key.json"

Progress = Callable[[str, int, int], None]


class Outcome(NamedTuple):
    """Number of ratings, number of correct ones, and the one-sided p-value against guessing, as in the paper."""

    ratings: int
    right: int
    p: float

    @property
    def accuracy(self) -> float:
        return self.right / self.ratings


def write_test(
    folder: Path,
    model: AudioLM,
    sounds: Sequence[Waveform],
    seconds: float = 7.0,
    seed: int = 0,
    tell: Progress = lambda what, done, total: None,
) -> None:
    """Write a test with one clip per sound (mono, at the model's rate), each 3 s plus `seconds` long, or as long as the shortest
    sound if that is less. InputError if there are fewer than two sounds, or one is shorter than 4 s.
    """
    length = min((sound.seconds for sound in sounds), default=0.0)
    if len(sounds) < 2 or length < PROMPT + 1:
        raise InputError(f"a listening test needs at least two recordings of {PROMPT + 1:g} s or more; give more or longer ones")
    length = min(length, PROMPT + seconds)
    order = torch.randperm(len(sounds), generator=Generator().manual_seed(seed)).tolist()
    levels = model.record()["codebooks"]  # as many as the generated sound has, or codec quality would give it away
    through_codec = [model.reconstruct(sound.trim(length), levels) for sound in sounds]
    chosen = sorted(order[: len(sounds) // 2])
    requests = [Request(sounds[n].trim(PROMPT), length - PROMPT, seed=seed + n) for n in chosen]
    clips = [("real", sound) for sound in through_codec]
    for done, first in enumerate(range(0, len(chosen), 8)):
        made = model.generate_batch(requests[first : first + 8], only_new=True)
        for number, new in zip(chosen[first : first + 8], made, strict=True):
            clips[number] = "generated", _joined(through_codec[number].trim(PROMPT), new)
        tell("listening", min(8 * (done + 1), len(chosen)), len(chosen))
    names = [_name(seed, number, sound) for number, (_, sound) in enumerate(clips)]
    test = hashlib.sha256(" ".join(sorted(names)).encode()).hexdigest()[:8]
    places = sorted(range(len(names)), key=names.__getitem__)  # by hash, so that neither order nor name gives a hint
    items = [{"id": names[n], "sound": sound_source(clips[n][1])} for n in places]
    key = {"test": test, "model": model.about.get("name"), "seconds": length, "clips": {names[n]: clips[n][0] for n in places}}
    for name, text in (("listening.html", page(test, items, length)), (KEY, json.dumps(key, indent=1) + "\n")):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _name(seed: int, number: int, sound: Waveform) -> str:
    return hashlib.sha256(f"{seed} {number}".encode() + sound.samples.numpy().tobytes()).hexdigest()[:12]


def _joined(prompt: Waveform, new: Waveform) -> Waveform:
    """Join a prompt that went through the codec and its continuation without a step between them."""
    fade = torch.linspace(1, 0, round(SEAM * new.sample_rate))
    samples = new.samples.clone()
    samples[:, : len(fade)] += (prompt.samples[:, -1:] - samples[:, :1]) * fade
    return Waveform(torch.cat([prompt.samples, samples], 1), new.sample_rate)


def page(test: str, items: Sequence[Mapping[str, str]], seconds: float) -> str:
    """The test as HTML."""
    data = json.dumps({"test": test, "prompt": PROMPT, "clips": list(items)}).replace("<", "\\u003c")
    body = f"""<main class=test>
<h1>Real or generated?</h1>
<section id=start>
<p>You will hear {len(items)} recordings of {seconds:.0f} seconds. <strong>The first {PROMPT:g} seconds of each are a real
voice</strong>, so that you can get used to it. In some, the same recording continues; in the others, a model generates the rest.
All of them were compressed in the same way, so compression artefacts tell you nothing.</p>
<p>Please use headphones. You may listen as often as you like, but an answer cannot be changed. At the end, save your answers as
a file and send it to whoever gave you this page.</p>
<p><label>Your initials or any name <input id=rater maxlength=40 autocomplete=off></label></p>
<p><button id=begin>Begin</button> <span class=quiet id=resumed></span></p>
</section>
<section id=trial hidden>
<p id=count aria-live=polite></p>
<progress id=progress max={len(items)} value=0></progress>
<audio id=player controls></audio>
<div class=choices>
<button class=choice id=real disabled>Real <kbd>R</kbd></button>
<button class=choice id=generated disabled>Generated <kbd>G</kbd></button>
</div>
<p class=quiet>You can answer from one second after the {PROMPT:g} real seconds. <kbd>P</kbd> plays and pauses.</p>
</section>
<section id=finish hidden>
<p>Thank you. Your answers are still only on this computer. Please save them:</p>
<p><a class=button id=save>Save the ratings</a></p>
<p class=quiet>{html.escape(f"Test {test}")}</p>
</section>
<noscript><p>This test needs JavaScript.</p></noscript>
</main>"""
    return document("Real or generated?", body, f"const TEST = {data};\n{asset('blindtest.js')}")


# Ratings


def outcome(right: int, ratings: int) -> Outcome:
    """Exact binomial test against guessing. InputError if there is no rating."""
    if not 0 <= right <= ratings or not ratings:
        raise InputError(f"ratings: {right} right of {ratings}; there must be at least one rating")
    as_good = sum(math.comb(ratings, count) for count in range(right, ratings + 1))
    return Outcome(ratings, right, as_good / 2**ratings)


def count_ratings(files: Sequence[Path], key: Path) -> dict[str, Outcome]:
    """The outcome for each rater, and for "all" together. InputError if a file belongs to another test or has no answers, or if
    a rater occurs twice.
    """
    truth = _json(key, "clips")
    right: dict[str, list[bool]] = {}
    for file in files:
        rated = _json(file, "ratings")
        name = str(rated.get("rater") or file.stem)
        if rated.get("test") != truth.get("test"):
            raise InputError(
                f"{file}: ratings of test {rated.get('test')}, but the key is of {truth.get('test')}; give its own key"
            )
        if name in right or name == "all":
            raise InputError(f"{file}: a second file by {name!r}; leave one out, or change the rater's name in it")
        try:
            right[name] = [truth["clips"][clip] == answer for clip, answer in rated["ratings"].items() if answer in ANSWERS]
        except KeyError as error:
            raise InputError(f"{file}: rates a clip {error} that is not in the key; copy it again") from error
        if not right[name]:
            raise InputError(f"{file}: {name!r} answered nothing; leave it out")
    found = {name: outcome(sum(each), len(each)) for name, each in right.items()}
    return {**found, "all": outcome(sum(each.right for each in found.values()), sum(each.ratings for each in found.values()))}


def _json(path: Path, wanted: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({(error.strerror or 'error').lower()}); check the path") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); copy it again") from error
    if not isinstance(found, dict) or not isinstance(found.get(wanted), dict):
        raise InputError(f"{path}: contains no {wanted}; give the files saved by the listening test, and its {KEY} as --key")
    return found
