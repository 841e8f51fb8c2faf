"""The tables of a report that follow the paper's (AudioLM, arXiv 2209.03143 v2: I to IV, Fig. 3), and some that it lacks."""

from collections.abc import Mapping
from typing import Any

from audiolm.measuring.tables import figure, section, table

Report = Mapping[str, Any]

ABX = {
    "units": "semantic tokens",
    "features": "the features that they are clusters of",
    "mfcc": "MFCC",
}
PUBLISHED_ABX = (
    ("w2v-BERT, 250 bit/s", "0.067", "0.076"),
    ("w2v-BERT, 6 kbit/s", "0.056", "0.062"),
    ("SoundStream, 2 kbit/s", "0.224", "0.287"),
    ("SoundStream, 6 kbit/s", "0.178", "0.266"),
)
SAID = {
    "real": "the recording",
    "codec": "the codec alone",
    "revoiced": "acoustic generation: its units in another voice",
    "revoiced_parallel": "acoustic generation by the parallel stage",
    "spoken": "the transcript read aloud, in another voice",
    "resaid": "continuation: its units, in the prompt's voice",
    "resaid_parallel": "continuation by the parallel stage",
}
PUBLISHED_WORDS = (
    ("the recording (Table II)", "0.025", "0.008"),
    ("SoundStream (Table II)", "0.026", "0.009"),
    ("AudioLM, acoustic generation (Table II)", "0.060", "0.034"),
    ("AudioLM, its units after a prompt (SoundStorm's Table 1)", "0.038", "0.015"),
)
VOICES = {
    "real": ("the original recording", ""),
    "codec": ("the original through the codec", "100.0"),
    "resaid": ("its units, in the prompt's voice", ""),
    "revoiced": ("acoustic generation: its units without a prompt", "3.2"),
    "full": ("**continuation**", "92.6"),
    "parallel": ("**continuation by the parallel stage**", ""),
    "acoustic": ("acoustic tokens only", ""),
    "shuffled": ("its units in random order", ""),
}
PAIRS = {"lexical": ("sWUGGY", "71.5 (83.7 of known words)"), "syntactic": ("sBLIMP", "64.7")}


def phonetic(report: Report) -> str:
    """Table I: ABX."""
    kinds = list(dict.fromkeys(name.split(".")[1] for name in report if name.startswith("abx.") and name.count(".") == 2))
    kinds = [kind for kind in kinds if f"abx.{kind}.within" in report or f"abx.{kind}.across" in report]
    if not kinds:
        return ""
    rows = [
        [
            ABX.get(kind, f"acoustic tokens, {kind.removeprefix('codec')} levels"),
            *(figure(report, f"abx.{kind}.{mode}", 3) for mode in ("within", "across")),
        ]
        for kind in kinds
    ]
    rows += [[f"{name} (the paper)", *values] for name, *values in PUBLISHED_ABX]
    source = "an item file" if report["abx.from_items"] else "the recogniser's phones"
    counts = " and ".join(f"{report.get(f'abx.{mode}_triplets', 0):.0f} {mode}" for mode in ("within", "across"))
    return section(
        "ABX: errors between triphones that differ in the middle phone",
        table(["", "within speakers", "across speakers"], rows),
        f"0 is perfect, 0.5 is chance. Triphones from {source}; triplets: {counts} speakers. Each token is represented by the "
        "vector that it stands for. Distances, limits and averages as in Libri-Light's script; the paper's figures are for "
        "LibriSpeech dev-clean.",
    )


def layers(report: Report) -> str:
    """Fig. 3."""
    numbers, sizes = (
        sorted({int(name.split(".")[1]) for name in report if name.startswith(f"{kind}.")}) for kind in ("layer", "size")
    )
    if not numbers:
        return ""
    head = ["layer", "ABX within", "ABX across", "PNMI of its units", "PNMI, corrected"]
    rows = []
    for number in numbers:
        keys = ("within", "across", "pnmi", "pnmi_corrected")
        name = f"**{number}**" if number == report["layers.own"] else str(number)
        rows.append([name, *(figure(report, f"layer.{number}.{key}", 3) for key in keys)])
    more = [[str(size), *(figure(report, f"size.{size}.{key}", 3) for key in ("pnmi", "pnmi_corrected"))] for size in sizes]
    origin = "training" if report["layers.elsewhere"] else "of the measured"
    return section(
        "Layers of the encoder, and numbers of units (Fig. 3)",
        table(head, rows),
        table(["units", "PNMI", "PNMI, corrected"], more),
        f"Bold: the layer in use. The units were refitted on {report['layers.fitted_on']:.0f} {origin} recordings, so they are "
        "somewhat worse than the model's own. Uncorrected PNMI grows with the number of units by chance alone: compare the "
        "corrected one, which is 0 for units that tell no more than when shuffled. The paper: ABX within 10.0, 5.9, 5.7, 6.2 % "
        "at layers 6 to 9 of w2v-BERT XL.",
    )


def oracle(report: Report) -> str:
    """Do the acoustic stages make use of their semantic tokens, and does the text stage make use of its text?"""
    names = [name.split(".")[1] for name in report if name.startswith("oracle.") and name.endswith(".true")]
    rows = []
    for stage in names:
        for way, title in (("true", "its own"), ("shuffled", "its own, shuffled"), ("other", "another recording's")):
            if f"oracle.{stage}.{way}" in report:
                gain = figure(report, f"oracle.{stage}.{way}_gain", 3) if way != "true" else ""
                rows.append([stage, title, figure(report, f"oracle.{stage}.{way}", 3), gain])
    if not rows:
        return ""
    verdicts = []
    for stage in names:
        low, high = report.get(f"oracle.{stage}.shuffled_gain.low"), report.get(f"oracle.{stage}.shuffled_gain.high")
        if low is not None and high is not None:
            kind = "text" if stage == "text" else "semantic tokens"
            said = f"uses its {kind}" if low > 0 else f"shows no significant use of its {kind}"
            verdicts.append(
                f"- The {stage} stage {said}: the true ones save {figure(report, f'oracle.{stage}.shuffled_gain', 3)} bits per "
                "token against shuffled ones."
            )
    return section(
        "Use of the given tokens: bits per predicted token",
        table(["stage", "semantic tokens (text stage: text) given", "bits per token", "saved by its own"], rows),
        "Teacher-forced, with the same predicted tokens in every row of a stage. A stage for which its own given tokens save "
        "nothing ignores them.",
        "\n".join(verdicts),
    )


def words(report: Report) -> str:
    """Table II."""
    rows = []
    for part, title in (("whole", "whole clips"), ("after", "after a prompt of 3 s")):
        for way, name in SAID.items():
            if f"words.{part}.{way}.wer" in report:
                rows.append([title, name, *(figure(report, f"words.{part}.{way}.{key}", 3) for key in ("wer", "cer", "pesq"))])
    if not rows:
        return ""
    rows += [["published", *row, ""] for row in PUBLISHED_WORDS]
    return section(
        "Words (Table II)",
        table(["", "", "WER", "CER", "PESQ"], rows),
        f"{report['words.whole.clips']:.0f} clips of 4 to 10 s, {report['words.after.clips']:.0f} of them with words after 3 s. "
        "The recogniser is pocketsphinx, far weaker than the paper's: what counts is the difference from the row of the "
        "recording. PESQ is against the recording, for versions that say the same units at the same time. A free continuation "
        "has words of its own, hence no error rate.",
    )


def speakers(report: Report) -> str:
    """Table III."""
    ways = [way for way in VOICES if f"speakers.{way}.accuracy" in report]
    if not ways:
        return ""
    unheard = any(f"speakers.{way}.unheard_accuracy" in report for way in ways)
    rows = []
    for way in ways:
        title, published = VOICES[way]
        cells = [_percent(report, f"speakers.{way}.{key}") for key in ("accuracy", *["unheard_accuracy"] * unheard)]
        rows.append([title, *cells, published])
    head = ["", "accuracy, %", *["for speakers new to the model"] * unheard, "the paper, 291 speakers"]
    return section(
        "Speaker classification (Table III)",
        table(head, rows),
        f"The paper's classifier, a quarter as wide, trained here on original and codec-decoded recordings of "
        f"{report['speakers.speakers']:.0f} speakers ({report['speakers.unheard_speakers']:.0f} of them new to the model); "
        f"chance is {100 * report['speakers.chance']:.1f} %. {report['speakers.clips']:.0f} held-out recordings, without the "
        "first 3 s, which are the prompt.",
    )


def pairs(report: Report) -> str:
    """Table IV."""
    rows = []
    for task, (title, published) in PAIRS.items():
        if f"pairs.{task}.score" in report:
            cells = (_percent(report, f"pairs.{task}.{key}") for key in ("score", "known", "whole"))
            rows.append([title, f"{report[f'pairs.{task}.pairs']:.0f}", *cells, published])
    if not rows:
        return ""
    return section(
        "sWUGGY and sBLIMP (Table IV)",
        table(["", "pairs", "accuracy per token, %", "known words only", "accuracy by the total, %", "the paper"], rows),
        "How often the semantic stage gives the real word, or the grammatical sentence, a higher log-likelihood, per token or in "
        "total, than its counterpart; chance is 50. The paper's figures are for the dev sets of ZeroSpeech 2021; sets made by "
        "scripts/spoken_pairs.py do not compare with them. Intervals are over words and sentences.",
    )


def distance(report: Report) -> str:
    """Fréchet distance."""
    rows = [[title, figure(report, f"distance.{way}", 4)] for way, (title, _) in VOICES.items() if f"distance.{way}" in report]
    if not rows:
        return ""
    return section(
        "Fréchet distance from real speech",
        table(["", "distance"], rows),
        f"Over GE2E speaker embeddings (256) of 1.6 s each: {report['distance.parts']:.0f} per row and "
        f"{report['distance.reference_parts']:.0f} of real speech. Such small sets are far apart by their size alone, so compare "
        "with the first row. It measures voices and rooms, not words, and does not compare with figures for other embeddings.",
    )


def missing(report: Report) -> str:
    """What could not be measured, and what it needs."""
    rows = [f"- {name.removeprefix('missing.')}: {report[name]}" for name in report if name.startswith("missing.")]
    return section("Not measured", "\n".join(rows)) if rows else ""


def _percent(report: Report, name: str) -> str:
    keys = (name, f"{name}.low", f"{name}.high")
    return figure({key: None if report.get(key) is None else 100 * report[key] for key in keys}, name, 1)
