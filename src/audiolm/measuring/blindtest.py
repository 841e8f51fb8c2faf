"""Real or generated? The paper's listening test (AudioLM section IV-G): raters reached 51.2 %, p = 0.23, which is chance.

All clips are equally long and went through the codec, so that it gives no hint; half are real, half are 3 s of a real prompt
and what the model makes of it. The page asks, and gives a file of ratings to keep; which clips are which stands in another
file, so that looking at the page's source helps nobody.

    listening.html        the test: one file, no network
    listening-key.json    the truth; keep it from the raters
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
SEAM = 0.005  # seconds over which a prompt and what follows are joined
KEY = "listening-key.json"

Progress = Callable[[str, int, int], None]


class Outcome(NamedTuple):
    """Of ratings: how many, how many right, and how often pure chance is as good or better (one-sided, as the paper's)."""

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
    """Write a test of as many clips as there are sounds (mono, at the model's rate), each 3 s and `seconds` long or as long as
    the shortest sound is. InputError where there are fewer than two, or one lasts less than 4 s.
    """
    length = min((sound.seconds for sound in sounds), default=0.0)
    if len(sounds) < 2 or length < PROMPT + 1:
        raise InputError(f"a listening test needs two recordings or more, of {PROMPT + 1:g} s or more; give others")
    length = min(length, PROMPT + seconds)
    order = torch.randperm(len(sounds), generator=Generator().manual_seed(seed)).tolist()
    levels = model.chosen()["codebooks"]  # as many as what is generated, or the codec would tell
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
    places = sorted(range(len(names)), key=names.__getitem__)  # by hash: neither order nor name tells anything
    items = [{"id": names[n], "sound": sound_source(clips[n][1])} for n in places]
    key = {"test": test, "model": model.about.get("name"), "seconds": length, "clips": {names[n]: clips[n][0] for n in places}}
    for name, text in (("listening.html", page(test, items, length)), (KEY, json.dumps(key, indent=1) + "\n")):
        with whole_file(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _name(seed: int, number: int, sound: Waveform) -> str:
    return hashlib.sha256(f"{seed} {number}".encode() + sound.samples.numpy().tobytes()).hexdigest()[:12]


def _joined(prompt: Waveform, new: Waveform) -> Waveform:
    """A prompt as the codec renders it and what the model made of the recording, without a step where they meet."""
    fade = torch.linspace(1, 0, round(SEAM * new.sample_rate))
    samples = new.samples.clone()
    samples[:, : len(fade)] += (prompt.samples[:, -1:] - samples[:, :1]) * fade
    return Waveform(torch.cat([prompt.samples, samples], 1), new.sample_rate)


def page(test: str, items: Sequence[Mapping[str, str]], seconds: float) -> str:
    """The HTML of a test."""
    data = json.dumps({"test": test, "prompt": PROMPT, "clips": list(items)}).replace("<", "\\u003c")
    body = f"""<main class=test>
<h1>Real or generated?</h1>
<section id=start>
<p>You will hear {len(items)} recordings of {seconds:.0f} seconds. <strong>The first {PROMPT:g} seconds of each are a real
voice</strong>, to get used to it. In some the same recording goes on; in the others a model invents the rest. All of them went
through the same compression, so its artefacts tell you nothing.</p>
<p>Use headphones. Answer each once; there is no way back. You may listen as often as you like. At the end you save a file:
please send it to whoever gave you this page.</p>
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
<p class=quiet>Answers open a second after the {PROMPT:g} seconds that are real. <kbd>P</kbd> plays and pauses.</p>
</section>
<section id=finish hidden>
<p>Thank you. Nothing has left this computer yet:</p>
<p><a class=button id=save>Save the ratings</a></p>
<p class=quiet>{html.escape(f"Test {test}")}</p>
</section>
<noscript><p>This test needs JavaScript.</p></noscript>
</main>"""
    return document("Real or generated?", body, f"const TEST = {data};\n{asset('blindtest.js')}")


# Ratings


def outcome(right: int, ratings: int) -> Outcome:
    """Exact binomial test against guessing. InputError where there is no rating."""
    if not 0 <= right <= ratings or not ratings:
        raise InputError(f"ratings: {right} right of {ratings}; there must be one at least")
    as_good = sum(math.comb(ratings, count) for count in range(right, ratings + 1))
    return Outcome(ratings, right, as_good / 2**ratings)


def count_ratings(files: Sequence[Path], key: Path) -> dict[str, Outcome]:
    """What each rater reached, and "all" together. InputError where a file is not of this test or holds no answer, or a rater is
    there twice.
    """
    truth = _json(key, "clips")
    right: dict[str, list[bool]] = {}
    for file in files:
        rated = _json(file, "ratings")
        name = str(rated.get("rater") or file.stem)
        if rated.get("test") != truth.get("test"):
            raise InputError(f"{file}: ratings of test {rated.get('test')}, the key is of {truth.get('test')}; give its own key")
        if name in right or name == "all":
            raise InputError(f"{file}: a second file by {name!r}; leave one out, or change its rater")
        try:
            right[name] = [truth["clips"][clip] == answer for clip, answer in rated["ratings"].items() if answer in ANSWERS]
        except KeyError as error:
            raise InputError(f"{file}: rates a clip {error} that the key does not know; copy it again") from error
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
        raise InputError(f"{path}: holds no {wanted}; give what the listening test saved, and its {KEY} as --key")
    return found
