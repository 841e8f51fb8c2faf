"""Turns a report of audiolm.measuring.evaluation into tables for a model card, with published figures next to ours.

Published figures come from AudioLM (Borsos et al. 2022, arXiv 2209.03143 v2), SoundStorm (2305.09636) and the published results
of Codec-SUPERB (speech split). They are for larger models, other recordings and, where stated, other measures.
"""

from collections.abc import Mapping
from typing import Any

from audiolm.measuring.tables import figure, section, table
from audiolm.measuring.tables_of_paper import distance, layers, missing, oracle, pairs, phonetic, speakers, words

# kbit/s, PESQ-WB and STOI, as measured by Codec-SUPERB.
CODECS = (
    ("DAC 16 kHz", 6, 3.88, 0.961),
    ("EnCodec 24 kHz", 6, 2.64, 0.910),
    ("SpeechTokenizer", 4, 2.13, 0.858),
    ("EnCodec 24 kHz", 3, 1.98, 0.861),
    ("HiFi-Codec 16 kHz", 2, 2.29, 0.875),
    ("EnCodec 24 kHz", 1.5, 1.52, 0.799),
)
VISQOL = ((6, "3.9"), (2, "3.3"))  # AudioLM Table I
VISQOLS = ("ViSQOL, fit (5)", "ViSQOL, lattice")
WAYS = {
    "real": "the original recording",
    "codec": "the original through the codec",
    "resaid": "the original's units, by the acoustic stages",
    "revoiced": "the original's units without a prompt, in another voice",
    "full": "**continuation, the whole chain**",
    "parallel": "**continuation by the parallel stage**",
    "acoustic": "acoustic tokens only (the paper's baseline)",
    "shuffled": "the original's units in random order, by the acoustic stages",
    "same_speaker": "the same speaker, another recording",
    "other_speakers": "other speakers",
}
PLAYED = {
    "real": "the original recording",
    "codec": "the original through the codec",
    "resaid": "the original's units, by the piano stage",
    "full": "**continuation, the whole chain**",
    "parallel": "**continuation by the parallel stage**",
    "acoustic": "acoustic tokens only (the paper's baseline)",
    "shuffled": "the original's units in random order, by the piano stage",
}
CLAIMS = {"similarity": "speaker similarity", "unit_errors": "unit errors", "bits": "bits per unit, distance from the original's"}


def markdown(report: Mapping[str, Any]) -> str:
    """The tables for all parts in the report, with 95 % intervals."""
    parts = [
        *(_head(report), _codec(report), _codebooks(report), _units(report), phonetic(report), layers(report)),
        *(_stages(report), oracle(report), _continuation(report), distance(report)),
        *(words(report), speakers(report), pairs(report), _music(report), missing(report)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: Mapping[str, Any]) -> str:
    made_by = f"By `{report['command']}` ({report['versions']}). " if "command" in report else ""
    split = f", split {report['split']} of {report['data']}" if "split" in report else ""
    by = report.get("recordings.by", "speakers")
    text = (
        f"{made_by}Measured on {report['recordings.clips']} recordings of {report['recordings.speakers']} {by}, "
        f"{report['recordings.seconds'] / 60:.1f} minutes (at most the first 30 s of each){split}; seed {report['seed']}. "
        "In brackets: 95 % intervals by bootstrap over recordings, which treats recordings of one speaker as independent."
    )
    if trained := report.get("recordings.train"):
        text += f" {trained} of the recordings are of the split train: if the model was trained on this data, it has heard them."
    if report.get("recordings.of", 0) > report["recordings.clips"]:
        text += f" They were chosen from {report['recordings.of']} recordings, as evenly over {by} as possible."
    if report["recordings.left_out"]:
        text += f" {len(report['recordings.left_out'])} recordings could not be read and were left out."
    return text


def _codec(report: Mapping[str, Any]) -> str:
    levels = sorted({int(name.split(".")[1]) for name in report if name.startswith("codec.")}, reverse=True)
    if not levels:
        return ""
    names = [("pesq", 2), ("stoi", 3), ("mel", 3), ("si_sdr", 1)]
    heard = [("fit", 2), ("lattice", 2)] if any(name.startswith("visqol.") for name in report) else []
    rows = [
        [
            f"this codec, {level} levels",
            f"{report[f'codec.{level}.bitrate'] / 1000:g}",
            *(figure(report, f"codec.{level}.{name}", digits) for name, digits in names),
            *(figure(report, f"visqol.{level}.{name}", digits) for name, digits in heard),
        ]
        for level in levels
    ]
    spare, visqol = [""] * len(heard), ""
    if clips := report.get("visqol.real.fit.clips"):
        visqol = (
            f" ViSQOL: of {clips} recordings, with the exponential fit of its first versions, which is most likely what "
            "the paper used, and with the lattice network of version 3.3, whose highest score depends on the recording."
        )
    if heard:
        rows.append(["the recording itself", *[""] * 5, *(figure(report, f"visqol.real.{name}", 2) for name, _ in heard)])
        rows += [[f"AudioLM's codec (Table I), {rate:g} kbit/s", f"{rate:g}", *[""] * 4, value, ""] for rate, value in VISQOL]
    rows += [
        [f"{name}, published", f"{rate:g}", f"{pesq:.2f}", f"{stoi:.3f}", "", "", *spare] for name, rate, pesq, stoi in CODECS
    ]
    return section(
        "Codec",
        table(["", "kbit/s", "PESQ-WB (4.64)", "STOI (1)", "mel distance (0)", "SI-SDR, dB", *VISQOLS[: len(heard)]], rows),
        "Mel distance: mean absolute difference of log10 mel magnitudes, over seven windows of 32 to 2048 samples (5 to "
        "320 bands). SI-SDR compares waveforms: a decoder that does not reproduce the phase is far below 0, however good it "
        f"sounds. Published: Codec-SUPERB, on other recordings.{visqol}",
    )


def _codebooks(report: Mapping[str, Any]) -> str:
    levels = sorted({int(name.split(".")[1]) for name in report if name.startswith("codebook.")})
    if not levels:
        return ""
    kinds = (
        ("bit/s, nominal", "bitrate", 1, 0),
        ("bit/s, by entropy", "entropy_bitrate", 1, 0),
        ("codes used, %", "used", 100, 0),
        ("perplexity", "perplexity", 1, 0),
        ("energy left, %", "residual_energy", 100, 1),
    )
    rows = []
    for title, kind, times, digits in kinds:
        found = [report[f"codebook.{level}.{kind}"] for level in levels]
        rows.append([title, *("-" if each is None else f"{times * each:.{digits}f}" for each in found)])
    note = (
        "Energy left: the share of the energy of the encoder's output, around its mean, that remains after a level. "
        "Codes used, entropy and perplexity: on these recordings only."
    )
    return section("Codebooks, level by level", table(["level", *map(str, levels)], rows), note)


def _units(report: Mapping[str, Any]) -> str:
    kinds = [
        (kind, title)
        for kind, title in (("units", "these units"), ("mfcc", "MFCC k-means, as many units"))
        if f"{kind}.pnmi" in report
    ]
    if not kinds:
        return ""
    keys = ("pnmi", "pnmi_corrected", "phone_purity", "unit_purity")
    rows = [
        [title, *(figure(report, f"{kind}.{key}", 3) for key in keys), f"{report[f'{kind}.units_used']:.0f}"]
        for kind, title in kinds
    ]
    fitted = f"{report['mfcc.fitted_on']:.0f} {'training' if report['mfcc.fitted_elsewhere'] else 'of the measured'} recordings"
    return section(
        "Semantic units and phones",
        table(["", "PNMI", "PNMI corrected for chance", "phone purity", "unit purity", "units in use"], rows),
        "PNMI: the share of the phones' entropy that the units explain, frame by frame (25 Hz). Phones are from pocketsphinx, "
        f"aligned to the transcript if there is one. The MFCC baseline was fitted on {fitted}.",
    )


def _stages(report: Mapping[str, Any]) -> str:
    names = list(
        dict.fromkeys(
            name.removeprefix("stage.").removesuffix(".bits")
            for name in report
            if name.startswith("stage.") and name.endswith(".bits")
        )
    )
    if not names:
        return ""
    rows = []
    for name in names:
        stage, _, level = name.partition(".")
        bits, unigram = (report[f"stage.{name}.{kind}"] for kind in ("bits", "unigram"))
        saved = "-" if bits is None or not unigram else f"{100 * (1 - bits / unigram):.0f}"
        cells = (figure(report, f"stage.{name}.{kind}", 3) for kind in ("bits", "unigram"))
        rows.append([f"level {level}" if level else f"**{stage}**", *cells, saved])
    return section(
        "Bits per token",
        table(["stage", "model", "unigram", "saved, %"], rows),
        "Teacher-forced, in crops as long as each stage's training crops. The unigram model uses the frequencies of the measured "
        "tokens themselves, which favours it as much as possible. A parallel stage predicts a whole level at once, from the "
        "given codes and all lower levels. The paper reports no such figures.",
    )


def _continuation(report: Mapping[str, Any]) -> str:
    clips = report.get("continuation.clips")
    if clips is None:
        return ""
    if not clips:
        return section("Continuation", "No recording has the 4 s that a prompt and a continuation need.")
    measures = (("similarity", 3), ("unit_errors", 3), ("bits", 2), ("changes", 1))
    ways = [way for way in WAYS if any(f"continuation.{way}.{name}" in report for name, _ in measures)]
    rows = [[WAYS[way], *(figure(report, f"continuation.{way}.{name}", digits) for name, digits in measures)] for way in ways]
    note = (
        f"{clips:.0f} recordings of {report['continuation.speakers']:.0f} {report.get('recordings.by', 'speakers')}: "
        "the first 3 s are the prompt, followed by "
        f"{report['continuation.mean_seconds']:.1f} s on average; only what follows the prompt is measured. Speaker similarity: "
        "cosine between the speaker embeddings of the continuation and of the prompt (GE2E, resemblyzer's weights). Unit errors: "
        "edits per unit between the units asked for and those that the tokenizer finds in the result, without repeats. Bits per "
        "unit: of the units found, under this model's own semantic stage, given the prompt's units. Sound that continues as real "
        "sound does needs as many as the original: noise needs more, silence and drones need fewer. The whole chain is sampled "
        "from that very stage, which favours it. A classifier finds the prompt's speaker in 92.6 % of AudioLM's continuations "
        "(Table III); SoundStorm's Table 1 gives them a speaker similarity of 0.46 to 0.48, by another embedding."
    )
    if missing := report.get("continuation.voice.missing"):
        note += f" Not measured: {missing}."
    claims = [_claim(report, name) for name in report if name.startswith("claim.") and name.count(".") == 2]
    if claims:
        note += " Paired differences, recording by recording, are above 0 where the whole chain is better."
    compared = table(["", "speaker similarity", "unit errors", "bits per unit", "unit changes per second"], rows)
    return section("Continuation", compared, note, "\n".join(claims))


def _claim(report: Mapping[str, Any], name: str) -> str:
    _, measure, way = name.split(".")
    low, high = report[f"{name}.low"], report[f"{name}.high"]
    if low is None or high is None:
        verdict = "too few recordings to tell"
    else:
        verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return f"- {CLAIMS[measure]}, whole chain against {WAYS[way]}: {verdict}; paired difference {figure(report, name, 3)}"


def _music(report: Mapping[str, Any]) -> str:
    levels = sorted({int(name.split(".")[2]) for name in report if name.startswith("music.codec.") and name.endswith(".tones")})
    if not levels:
        return ""
    kept = [["tones kept", *(figure(report, f"music.codec.{level}.tones", 3) for level in levels)]]
    kinds = {"these units": "music.units.chroma", "MFCC k-means, as many units": "music.mfcc.chroma"}
    chroma = [[name, figure(report, key, 3)] for name, key in kinds.items() if key in report]
    measures = (("key", 3), ("other_key", 3), ("entropy", 2), ("onsets", 1), ("level", 1))
    ways = [way for way in PLAYED if f"music.{way}.key" in report]
    rows = [[PLAYED[way], *(figure(report, f"music.{way}.{name}", digits) for name, digits in measures)] for way in ways]
    head = ["", "key: the prompt's", "key: another prompt's", "entropy over semitones", "onsets per second", "level, dB"]
    return section(
        "Music",
        table(["levels", *map(str, levels)], kept),
        table(["", "chroma explained by the units"], chroma) if chroma else "",
        table(head, rows) if rows else "",
        "Tones kept: mean cosine between the semitone energies of the recording and of the codec's output, in windows of half a "
        "second. Chroma: the share of its variance that a frame's unit explains by its mean over the other recordings; 0 is "
        "nothing, 1 is all. Key: cosine between the energy shares of the twelve pitch classes in the continuation and in the "
        "prompt. Entropy, in nats: how far the energy of half a second is spread over the semitones. Level: relative to the "
        "prompt. The paper had raters compare continuations of 20 s (83.3 % in favour of the whole chain over acoustic tokens "
        "only) and reports no such figures.",
    )
