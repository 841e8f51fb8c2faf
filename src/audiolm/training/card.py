"""The model card for a recipe's result: the README.md of its bundle."""

from collections.abc import Mapping, Sequence
from typing import Any


def card(about: Mapping[str, Any], stages: Sequence[str]) -> str:
    """The card in Markdown, from a bundle's `about`: name, licence, hours, recordings, training_seconds, gates, versions."""
    hours = ", ".join(f"{value:.2f} h {split}" for split, value in about["hours"].items())
    costs = [f"| {name} | {seconds or 0:.0f} |" for name, seconds in about["training_seconds"].items()]
    taken = about.get("taken", {}).items()
    return "\n".join(
        [
            f"# {about['name']}",
            "",
            "An AudioLM (Borsos et al. 2022) trained with `audiolm train`. " + _origin(about.get("base")),
            *(f"Its {name} was taken as it was: {each['source']} (licence: {each['licence']})." for name, each in taken),
            "",
            f"- Recordings: {about['recordings']} ({hours})",
            f"- Licence: {about['licence']}",
            f"- Stages: {', '.join(stages)}",
            "- Quality: the gates below; for a full report run `audiolm evaluate THIS_FOLDER --data RECORDINGS --report report`",
            "",
            "| step | seconds |",
            "|---|---|",
            *costs,
            "",
            *_gates(about["gates"]),
            f"Made with {', '.join(f'{name} {version}' for name, version in about['versions'].items())}.",
            "",
        ]
    )


def _origin(base: Mapping[str, Any] | None) -> str:
    if base is None:
        return "It was trained from scratch on the recordings below."
    return (
        f"It continues from {base['name']} (licence: {base['licence']}), whose codec and units it uses; "
        "the stages with a training time below were trained further on the recordings below."
    )


def _gates(gates: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    rows = [
        f"| {step} | {name} | {'-' if gate['figure'] is None else format(gate['figure'], '.3f')} | {gate['threshold']:g} | "
        f"{gate['verdict']} | {gate['note']} |"
        for step, each in gates.items()
        for name, gate in each.items()
    ]
    if not rows:
        return ["No gates were enabled, so nothing was measured during training.", ""]
    return ["| step | gate | figure | at least | verdict | note |", "|---|---|---|---|---|---|", *rows, ""]
