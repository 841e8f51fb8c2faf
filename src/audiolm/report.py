"""A report of audiolm.evaluation as tables for a model card, with published figures beside ours.

Published figures come from AudioLM (Borsos et al. 2022, arXiv 2209.03143 v2), SoundStorm (2305.09636) and the results that
Codec-SUPERB publishes (speech split). They are of larger models, other recordings and, where said, other measures.
"""

from collections.abc import Mapping, Sequence
from typing import Any

# kbit/s, PESQ-WB, STOI as Codec-SUPERB measured them.
CODECS = (
    ("DAC 16 kHz", 6, 3.88, 0.961),
    ("EnCodec 24 kHz", 6, 2.64, 0.910),
    ("SpeechTokenizer", 4, 2.13, 0.858),
    ("EnCodec 24 kHz", 3, 1.98, 0.861),
    ("HiFi-Codec 16 kHz", 2, 2.29, 0.875),
    ("EnCodec 24 kHz", 1.5, 1.52, 0.799),
)
WAYS = {
    "real": "what the speaker said",
    "codec": "the same through the codec",
    "resaid": "its units, said by the acoustic stages",
    "full": "**continuation, the whole chain**",
    "acoustic": "acoustic tokens alone (the paper's baseline)",
    "shuffled": "its units in random order, said likewise",
    "same_speaker": "the same speaker, another recording",
    "other_speakers": "other speakers",
}
CLAIMS = {"similarity": "likeness of the voice", "unit_errors": "unit errors", "bits": "bits a unit"}


def markdown(report: Mapping[str, Any]) -> str:
    """Tables of whatever the report holds; every figure with its 95 % interval."""
    parts = [_head(report), _codec(report), _codebooks(report), _units(report), _stages(report), _continuation(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: Mapping[str, Any]) -> str:
    made_by = f"By `{report['command']}` ({report['versions']}). " if "command" in report else ""
    split = f", split {report['split']} of {report['data']}" if "split" in report else ""
    text = (
        f"{made_by}Measured on {report['recordings.clips']} recordings of {report['recordings.speakers']} speakers, "
        f"{report['recordings.seconds'] / 60:.1f} minutes (at most the first 30 s of each){split}; seed {report['seed']}. "
        "In brackets: 95 % intervals by bootstrap over recordings, which takes recordings of one speaker for independent."
    )
    if report["recordings.left_out"]:
        text += f" {len(report['recordings.left_out'])} recordings could not be read and were left out."
    return text


def _codec(report: Mapping[str, Any]) -> str:
    levels = sorted({int(name.split(".")[1]) for name in report if name.startswith("codec.")}, reverse=True)
    if not levels:
        return ""
    rows = [
        [
            f"this codec, {level} levels",
            f"{report[f'codec.{level}.bitrate'] / 1000:g}",
            *(
                _figure(report, f"codec.{level}.{name}", digits)
                for name, digits in (("pesq", 2), ("stoi", 3), ("mel", 3), ("si_sdr", 1))
            ),
        ]
        for level in levels
    ]
    rows += [[f"{name}, published", f"{rate:g}", f"{pesq:.2f}", f"{stoi:.3f}", "", ""] for name, rate, pesq, stoi in CODECS]
    return _section(
        "Codec",
        _table(["", "kbit/s", "PESQ-WB (4.64)", "STOI (1)", "mel distance (0)", "SI-SDR, dB"], rows),
        "Mel distance: mean absolute difference of log10 mel magnitudes, over seven windows of 32 to 2048 samples (5 to "
        "320 bands). Published: Codec-SUPERB, other recordings. AudioLM's own codec: ViSQOL 3.9 at 6 kbit/s, 3.3 at 2 (Table I).",
    )


def _codebooks(report: Mapping[str, Any]) -> str:
    levels = sorted({int(name.split(".")[1]) for name in report if name.startswith("codebook.")})
    if not levels:
        return ""
    rows = [
        ["codes used, %", *(f"{100 * report[f'codebook.{level}.used']:.0f}" for level in levels)],
        ["perplexity", *(f"{report[f'codebook.{level}.perplexity']:.0f}" for level in levels)],
        ["energy left, %", *(f"{100 * report[f'codebook.{level}.residual_energy']:.1f}" for level in levels)],
    ]
    note = (
        "Energy left: of the encoder's output, around its mean, after the level. Use and perplexity: on these recordings alone."
    )
    return _section("Codebooks, level by level", _table(["level", *map(str, levels)], rows), note)


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
        [title, *(_figure(report, f"{kind}.{key}", 3) for key in keys), f"{report[f'{kind}.units_used']:.0f}"]
        for kind, title in kinds
    ]
    fitted = f"{report['mfcc.fitted_on']:.0f} {'training' if report['mfcc.fitted_elsewhere'] else 'of these very'} recordings"
    return _section(
        "Semantic units and phones",
        _table(["", "PNMI", "the same, corrected for few frames", "phone purity", "unit purity", "units in use"], rows),
        "PNMI: the share of the phones' entropy that the units tell, frame by frame (25 Hz); phones as pocketsphinx finds them, "
        f"from the transcript where there is one. The baseline was fitted on {fitted}. "
        "AudioLM reports ABX instead: 6.7 within and 7.6 across speakers (Table I).",
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
        saved = "-" if not unigram else f"{100 * (1 - bits / unigram):.0f}"
        cells = (_figure(report, f"stage.{name}.{kind}", 3) for kind in ("bits", "unigram"))
        rows.append([f"level {level}" if level else f"**{stage}**", *cells, saved])
    return _section(
        "Bits per token",
        _table(["stage", "model", "unigram", "saved, %"], rows),
        "Teacher-forced in each stage's training crops. The unigram's frequencies are those of the very tokens measured, which "
        "favours it as much as can be. The paper reports no such figures.",
    )


def _continuation(report: Mapping[str, Any]) -> str:
    clips = report.get("continuation.clips")
    if clips is None:
        return ""
    if not clips:
        return _section("Continuation", "No recording lasts the 4 s that a prompt and a continuation need.")
    measures = (("similarity", 3), ("unit_errors", 3), ("bits", 2), ("changes", 1))
    ways = [way for way in WAYS if any(f"continuation.{way}.{name}" in report for name, _ in measures)]
    rows = [[WAYS[way], *(_figure(report, f"continuation.{way}.{name}", digits) for name, digits in measures)] for way in ways]
    note = (
        f"{clips:.0f} recordings of {report['continuation.speakers']:.0f} speakers: the first 3 s are the prompt, followed by "
        f"{report['continuation.mean_seconds']:.1f} s on average; only what follows is measured. Voice: cosine of its speaker "
        "embedding and the prompt's (GE2E, resemblyzer's weights). Unit errors: edits a unit between the units asked for and "
        "those that the tokenizer hears in the result, repeats removed. Bits: of the heard units under this model's own semantic "
        "stage, given the prompt's; fewer are more speech-like, but silence and drones are cheap too, so see how often units "
        "change, and the whole chain is sampled from that very stage, which favours it. A classifier "
        "finds the prompt's speaker in 92.6 % of AudioLM's continuations (Table III); SoundStorm's Table 1 gives them a voice "
        "similarity of 0.46 to 0.48 by another embedding."
    )
    if missing := report.get("continuation.voice.missing"):
        note += f" Not measured: {missing}."
    claims = [_claim(report, name) for name in report if name.startswith("claim.") and name.count(".") == 2]
    table = _table(["", "voice", "unit errors", "bits a unit", "changes a second"], rows)
    return _section("Continuation", table, note, "\n".join(claims))


def _claim(report: Mapping[str, Any], name: str) -> str:
    _, measure, way = name.split(".")
    low, high = report[f"{name}.low"], report[f"{name}.high"]
    if low is None or high is None:
        verdict = "too few recordings to tell"
    else:
        verdict = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return (
        f"- {CLAIMS[measure]}, whole chain against {WAYS[way]}: {verdict}, by {_figure(report, name, 3)} recording by recording"
    )


def _figure(report: Mapping[str, Any], name: str, digits: int) -> str:
    if report.get(name) is None:
        return "-"
    low, high = report.get(f"{name}.low"), report.get(f"{name}.high")
    interval = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{report[name]:.{digits}f}{interval}"


def _section(title: str, *parts: str) -> str:
    return "\n\n".join([f"### {title}", *(part for part in parts if part)])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
