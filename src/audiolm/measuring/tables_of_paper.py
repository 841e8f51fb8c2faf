"""A report's tables beside the paper's (AudioLM, arXiv 2209.03143 v2): I, II, III, IV, Fig. 3, and what stands beside none."""

from collections.abc import Mapping
from typing import Any

from audiolm.measuring.tables import figure, section, table

Report = Mapping[str, Any]

ABX = {
    "units": "semantic tokens",
    "features": "what they are learnt from",
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
    "revoiced_parallel": "the same by the parallel stage",
    "resaid": "continuation: its units, in the prompt's voice",
    "resaid_parallel": "the same by the parallel stage",
}
PUBLISHED_WORDS = (
    ("the recording (Table II)", "0.025", "0.008"),
    ("SoundStream (Table II)", "0.026", "0.009"),
    ("AudioLM, acoustic generation (Table II)", "0.060", "0.034"),
    ("AudioLM, its units after a prompt (SoundStorm's Table 1)", "0.038", "0.015"),
)
VOICES = {
    "real": ("what the speaker said", ""),
    "codec": ("the same through the codec", "100.0"),
    "resaid": ("its units, in the prompt's voice", ""),
    "revoiced": ("acoustic generation: its units without a prompt", "3.2"),
    "full": ("**continuation**", "92.6"),
    "parallel": ("**continuation by the parallel stage**", ""),
    "acoustic": ("acoustic tokens alone", ""),
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
    rows += [[f"{name}, the paper's", *values] for name, *values in PUBLISHED_ABX]
    source = "an item file" if report["abx.from_items"] else "the recogniser's phones"
    counts = " and ".join(f"{report.get(f'abx.{mode}_triplets', 0):.0f} {mode}" for mode in ("within", "across"))
    return section(
        "ABX: errors between triphones that differ in the middle phone",
        table(["", "within speakers", "across speakers"], rows),
        f"0 is perfect, 0.5 chance. Triphones of {source}; {counts} speakers. A frame is the vector that its token stands for. "
        "Libri-Light's script in its distances, limits and averages; the paper's are of LibriSpeech dev-clean.",
    )


def layers(report: Report) -> str:
    """Fig. 3."""
    numbers, sizes = (
        sorted({int(name.split(".")[1]) for name in report if name.startswith(f"{kind}.")}) for kind in ("layer", "size")
    )
    if not numbers:
        return ""
    head = ["layer", "ABX within", "ABX across", "PNMI of its units", "the same, corrected"]
    rows = []
    for number in numbers:
        keys = ("within", "across", "pnmi", "pnmi_corrected")
        name = f"**{number}**" if number == report["layers.own"] else str(number)
        rows.append([name, *(figure(report, f"layer.{number}.{key}", 3) for key in keys)])
    more = [[str(size), *(figure(report, f"size.{size}.{key}", 3) for key in ("pnmi", "pnmi_corrected"))] for size in sizes]
    origin = "training" if report["layers.elsewhere"] else "of these very"
    return section(
        "Layers of the encoder, and numbers of units (Fig. 3)",
        table(head, rows),
        table(["units", "PNMI", "the same, corrected"], more),
        f"Bold: the layer in use. Units learnt anew from {report['layers.fitted_on']:.0f} {origin} recordings, so that they are "
        "somewhat worse than the model's own. PNMI as it stands grows with the number of units by chance alone: compare the "
        "corrected one, 0 for units that tell no more than when shuffled. The paper: ABX within 10.0, 5.9, 5.7, 6.2 % "
        "at layers 6 to 9 of w2v-BERT XL.",
    )


def oracle(report: Report) -> str:
    """Do the stages listen to their semantic tokens?"""
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
            said = (
                "listens to its semantic tokens" if low > 0 else "does not listen to its semantic tokens, as far as can be shown"
            )
            verdicts.append(
                f"- The {stage} stage {said}: the true ones save {figure(report, f'oracle.{stage}.shuffled_gain', 3)} bits."
            )
    return section(
        "Does it listen? Bits per acoustic token, given semantic tokens",
        table(["stage", "semantic tokens", "bits", "saved by the true ones"], rows),
        "Teacher-forced, the same codes in every row. A stage that saves nothing ignores what it is to say.",
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
        f"{report['words.whole.clips']:.0f} clips of 4 to 10 s, {report['words.after.clips']:.0f} of them with words after 3 s; "
        "heard by pocketsphinx, a far weaker recogniser than the paper's: what counts is the distance from the "
        "recording's row. PESQ: of what says the recording's units at their times, against it. A free continuation has words of "
        "its own, hence no error rate.",
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
    head = ["", "accuracy, %", *["of speakers unheard by the model"] * unheard, "the paper's, of 291"]
    return section(
        "Whose voice (Table III)",
        table(head, rows),
        f"The paper's classifier, a quarter as wide, trained here on {report['speakers.speakers']:.0f} speakers "
        f"({report['speakers.unheard_speakers']:.0f} of them unheard by the model), as they are and through the codec; chance "
        f"{100 * report['speakers.chance']:.1f} %. {report['speakers.clips']:.0f} held-out recordings, what follows 3 s of each.",
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
        "Which is the word, which the sentence (Table IV)",
        table(["", "pairs", "a token, %", "known words alone", "of the whole", "the paper's"], rows),
        "How often the semantic stage finds the real word, or the grammatical sentence, likelier than its twin; chance is 50. "
        "The paper's are of ZeroSpeech 2021's dev sets; a set made by scripts/spoken_pairs.py is easier or harder, not the same. "
        "Intervals over words and sentences.",
    )


def distance(report: Report) -> str:
    """Fréchet distance."""
    rows = [[title, figure(report, f"distance.{way}", 4)] for way, (title, _) in VOICES.items() if f"distance.{way}" in report]
    if not rows:
        return ""
    return section(
        "Fréchet distance from real speech",
        table(["", "distance"], rows),
        f"Over the GE2E speaker encoder's embeddings of 1.6 s (256 numbers), {report['distance.parts']:.0f} of each way, "
        f"{report['distance.reference_parts']:.0f} of real speech: so few that they are far apart by their number alone; compare "
        "with the first row. It is of voices and rooms, not of words, and no figure of another embedding compares with it.",
    )


def missing(report: Report) -> str:
    """What could not be measured, and what it wants."""
    rows = [f"- {name.removeprefix('missing.')}: {report[name]}" for name in report if name.startswith("missing.")]
    return section("Not measured", "\n".join(rows)) if rows else ""


def _percent(report: Report, name: str) -> str:
    keys = (name, f"{name}.low", f"{name}.high")
    return figure({key: None if report.get(key) is None else 100 * report[key] for key in keys}, name, 1)
