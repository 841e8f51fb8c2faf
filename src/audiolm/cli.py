"""The command-line program: each verb calls one public function of the library.

Exit codes: 0 success; 2 user error, reported in one line on standard error; 1 anything else. With --json, standard output
holds a single JSON document and nothing else; progress and messages go to standard error.
"""

import io
import os
import sys
from importlib.metadata import version

from cyclopts import App, CycloptsError

from audiolm.commands import detecting, measuring, serving, sounds, training
from audiolm.commands.making import STDIN
from audiolm.errors import InputError

EXAMPLES = {
    "continue": """
  Continue a recording in the same voice; three samples, with plots:
    audiolm continue prompt.wav -o out.wav
    audiolm continue prompt.mp3 -o out.wav --samples 3 --plot out.png

  Listen while it is generated; continue from the microphone:
    audiolm continue prompt.wav --seconds 60 --stream | aplay
    arecord -f cd -d 4 | audiolm continue -
""",
    "generate": """
  Speech without a prompt; piano:
    audiolm generate -o out.wav --seconds 5
    audiolm generate -o out.wav --model piano
""",
    "revoice": """
  The same words in another voice:
    audiolm revoice in.wav -o out.wav --voice other.wav
""",
    "speak": """
  Read a text aloud, in the voice of a recording:
    audiolm speak "Good morning, and good luck." -o out.wav --voice prompt.wav
""",
    "reconstruct": """
  The codec alone:
    audiolm reconstruct in.wav -o out.wav --codebooks 3
""",
    "serve": """
  Everything in a browser, and over HTTP for other programs:
    audiolm serve
    audiolm serve seconds=30 --host 0.0.0.0 --api-key-file keys.txt
""",
    "detect": """
  Check whether audiolm made it:
    audiolm detect out.wav
""",
    "plan": """
  Estimate what training on your own recordings takes on this machine:
    audiolm plan recipes/tiny.toml data=my-recordings
""",
    "train": """
  Train a model on your own recordings:
    audiolm train recipes/tiny.toml data=my-recordings out=runs/mine
""",
    "info": """
  Describe a trained model, a recording, a token store:
    audiolm info runs/mine/bundle
    audiolm info out.wav
    audiolm info tokens --verify
""",
    "evaluate": """
  Evaluate a model; only some of the tables, in less time:
    audiolm evaluate runs/mine/bundle --data my-recordings --report report
    audiolm evaluate --data my-recordings --report report --parts codec
""",
    "tokenize": """
  Tokenize a corpus:
    audiolm tokenize my-recordings -o tokens
""",
    "train-detector": """
  Train a detector for a model's voice:
    audiolm train-detector runs/mine/bundle --data my-recordings --out detector
""",
    "ratings": """
  Score the answers to the test from `audiolm evaluate --listening-test 20`:
    audiolm ratings anna.json ben.json --key report/listening-key.json
""",
    "doctor": """
  Check what this machine can do:
    audiolm doctor
""",
}


def _epilogue(*verbs: str) -> str:
    return "\nExamples:\n" + "".join(EXAMPLES[verb] for verb in verbs)


app = App(
    name="audiolm",
    help="AudioLM learns to speak and play music from raw audio alone, and continues a prompt of a few seconds.",
    help_epilogue=_epilogue(*EXAMPLES),
    help_format="plaintext",
    version_flags=["--version"],
    version=lambda: version("audiolm"),  # by itself it would look for the package `__main__` under python -m audiolm.cli
    suppress_keyboard_interrupt=False,  # `run` handles it
)

for function in (
    *(sounds.continue_, sounds.generate, sounds.revoice, sounds.speak, sounds.reconstruct),
    *(training.tokenize, training.train, training.plan),
    *(measuring.evaluate, measuring.detect, measuring.info, measuring.doctor),
    serving.serve,
    *(detecting.train_detector, detecting.ratings),
):
    verb = function.__name__.strip("_").replace("_", "-")
    app.command(function, name=verb, help_epilogue=_epilogue(verb))


def main() -> None:
    """Entry point of the `audiolm` command."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - None if it was closed by whoever started this
    for stream in (sys.stdout, sys.stderr):  # names of files may hold bytes that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(_flushed(run(sys.argv[1:])))


def _flushed(code: int) -> int:
    """The exit code after standard output was flushed: at exit, Python would report a full disk or a gone reader its own way."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still buffered
        if not isinstance(error, BrokenPipeError):
            return code or _complain(f"standard output: cannot be written ({(error.strerror or str(error)).lower()})", 2)
        return code or 1
    return code


def run(arguments: list[str]) -> int:
    """Run the program and return its exit code."""
    arguments = [STDIN if each == "-" else each for each in arguments]
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_none")
    except (InputError, CycloptsError) as error:
        return _complain(" ".join(str(error).split()), 2)
    except KeyboardInterrupt:
        return _complain("stopped", 1)
    except BrokenPipeError:  # the reader is gone
        return 1
    except SystemExit as stop:  # training that was asked to stop exits with its own message
        return _complain(str(stop.code), 1) if isinstance(stop.code, str) else int(stop.code or 0)
    except Exception as error:
        if os.environ.get("AUDIOLM_TRACEBACK"):
            raise
        kind = type(error).__name__
        return _complain(f"{kind}: {' '.join(str(error).split())} (AUDIOLM_TRACEBACK=1 shows where)", 1)
    return 0


def _complain(text: str, code: int) -> int:
    print(f"audiolm: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
