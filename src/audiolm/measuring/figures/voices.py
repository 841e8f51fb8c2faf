"""The paper's speaker classifier (AudioLM section IV-D, Table III), and Fréchet distances between sets of voices.

The classifier's speakers come from all splits and have at least six recordings each. A tenth of each speaker's recordings is
held out; from these, the reconstructions, revoicings and continuations to classify are made. The classifier is trained on
recordings both as they are and through the codec. With a quarter of the paper's channels it trains in minutes on a CPU.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from audiolm.classifier import CHANNELS, CROP, CropClassifier, crop_logits
from audiolm.errors import InputError
from audiolm.measuring.continuations import PROMPT, SHORTEST, continuations
from audiolm.measuring.figures.bench import Bench, Figures, Missing, at_16k, readable
from audiolm.measuring.metrics import Measure, bootstrap, frechet, mean
from audiolm.measuring.speaker import voice_encoder
from audiolm.training.data import Recording, in_turn

SMALL = tuple(channels // 4 for channels in CHANNELS)
LEAST = 6  # recordings that a speaker must have
HEARD = 8  # training recordings per speaker, at most
SPEAKERS = 40  # at most; more would need longer training
STEPS, BATCH, RATE = 300, 32, 2e-3
WAYS = ("real", "codec", "revoiced", "full", "parallel", "acoustic")
DRAWS = 50  # bootstrap draws for the Fréchet distance, each of which needs a matrix decomposition


def speaker_figures(bench: Bench) -> Figures:
    """Table III: how often the classifier recognises the speaker of each kind of continuation."""
    measured = [clip.recording for clip in bench.clips]
    learnt, held = held_out([*measured, *bench.others], bench.seed, {each.speaker for each in measured})
    if len(learnt) < 2:
        raise Missing(f"speaker classification (Table III) needs at least two speakers with {LEAST} recordings each")
    names = sorted(learnt)
    sounds: list[list[Tensor]] = []
    for number, name in enumerate(names, 1):
        whole = readable(learnt[name], bench.model.sample_rate)
        if not whole:
            raise Missing(f"speaker classification (Table III) can read none of the recordings of speaker {name}; repair them")
        coded = [bench.model.reconstruct(sound, watermark=False) for sound in whole]
        sounds.append([at_16k(sound) for sound in [*whole, *coded]])
        bench.tell("speakers' sounds", number, len(names))
    classifier = train_speakers(sounds, bench.seed, bench)
    unheard = not_trained_on([*measured, *bench.others])
    recordings = [each for each in held if each.seconds >= PROMPT + SHORTEST + 0.04]
    # Half of the continued recordings are of speakers that the model never heard, if there are enough.
    order = in_turn([each.speaker for each in recordings], bench.seed)
    sides = [[recordings[n] for n in order if (recordings[n].speaker in unheard) is side] for side in (True, False)]
    half = max(bench.limit // 2, bench.limit - len(sides[1]))
    chosen = [*sides[0][:half], *sides[1]][: bench.limit]
    rate = bench.model.sample_rate
    pairs = [(each.speaker, sound) for each in chosen for sound in readable([each], rate)]
    made = continuations(bench.model, pairs, bench.seconds, bench.seed, bench.tell, WAYS)
    figures: Figures = {
        "speakers.speakers": float(len(names)),
        "speakers.unheard_speakers": float(len(unheard & set(names))),
        "speakers.clips": float(len(made)),
        "speakers.chance": 1 / len(names),
    }
    strange = torch.tensor([each.speaker in unheard for each in made])
    for way in [way for way in WAYS if made and way in made[0].sounds]:
        found = [crop_logits(classifier, each.sounds[way]).log_softmax(1).mean(0).argmax() for each in made]
        right = torch.tensor([names[int(guess)] == each.speaker for guess, each in zip(found, made, strict=True)]).double()
        figures[f"speakers.{way}.accuracy"] = mean(right)
        if 0 < int(strange.sum()) < len(made):
            figures[f"speakers.{way}.unheard_accuracy"] = mean(right[strange])
    return figures


def not_trained_on(recordings: Sequence[Recording]) -> set[str]:
    """Speakers without any recording in the train split."""
    return {each.speaker for each in recordings} - {each.speaker for each in recordings if each.split == "train"}


def held_out(
    recordings: Sequence[Recording], seed: int, first: Collection[str] = ()
) -> tuple[dict[str, list[Recording]], list[Recording]]:
    """Training recordings by speaker, and the held-out ones: a tenth of each speaker's recordings, at least one.

    first: speakers to take before all others.
    """
    by_speaker: dict[str, list[Recording]] = defaultdict(list)
    for number in in_turn([each.speaker for each in recordings], seed):
        by_speaker[recordings[number].speaker].append(recordings[number])
    enough = [name for name, each in by_speaker.items() if len(each) >= LEAST]
    learnt, held = {}, []
    for name in sorted(enough, key=lambda name: name not in first)[:SPEAKERS]:
        # Long ones first: held-out recordings must have something left after the prompt.
        own = sorted(by_speaker[name], key=lambda each: each.seconds < PROMPT + SHORTEST + 0.04)
        tenth = max(1, len(own) // 10)
        held += own[:tenth]
        learnt[name] = own[tenth : tenth + HEARD]
    return learnt, held


def train_speakers(sounds: Sequence[Sequence[Tensor]], seed: int, bench: Bench | None = None) -> CropClassifier:
    """Train the paper's classifier on each speaker's sounds (T) at 16 kHz, in crops of one second, all speakers equally often."""
    random = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = CropClassifier(len(sounds), SMALL).train()
    joined = [torch.cat(list(each)) for each in sounds]
    joined = [nnf.pad(each, (0, max(0, CROP - len(each)))) for each in joined]
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for step in range(STEPS):
        speakers = torch.randint(len(sounds), (BATCH,), generator=random)
        places = torch.rand(BATCH, generator=random).tolist()
        starts = [int(place * (len(joined[who]) - CROP + 1)) for who, place in zip(speakers.tolist(), places, strict=True)]
        crops = torch.stack([joined[who][start : start + CROP] for who, start in zip(speakers.tolist(), starts, strict=True)])
        nnf.cross_entropy(network(crops), speakers, label_smoothing=0.1).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if bench and (step + 1) % 10 == 0:
            bench.tell("speaker classifier", step + 1, STEPS)
    return network.eval()


def distance_figures(bench: Bench) -> Figures:
    """Fréchet distance of each kind of continuation from real speech, over a speaker encoder's embeddings."""
    try:
        encoder = voice_encoder()
    except InputError as error:
        raise Missing(f"the Fréchet distance needs a speaker encoder: {error}") from error
    made = bench.continued
    if len(made) < 2:
        raise Missing("the Fréchet distance needs at least two recordings of 4 s or more")
    # Real speech that is in none of the sets: recordings that are not continued, and the prompts.
    rest = [clip.sound for clip in bench.clips if all(clip is not each for each in bench.chosen)]
    theirs = torch.cat([encoder.parts(at_16k(sound)) for sound in [*rest, *(each.prompt for each in made)]])
    figures: Figures = {"distance.reference_parts": float(len(theirs))}
    ways = [way for way in (*WAYS, "resaid", "shuffled") if way in made[0].sounds]
    for number, way in enumerate(ways, 1):
        ours = [encoder.parts(at_16k(each.sounds[way])) for each in made]
        figures[f"distance.{way}"] = _distance(ours, theirs)
        figures["distance.parts"] = float(sum(map(len, ours)))
        bench.tell("distances", number, len(ways))
    return figures


def _distance(ours: Sequence[Tensor], theirs: Tensor) -> Measure:
    def statistic(draws: Tensor) -> Tensor:
        return torch.tensor([[frechet(torch.cat([ours[n] for n in index]), theirs)] for index in draws.tolist()])

    return bootstrap(statistic, len(ours), draws=DRAWS)[0]
