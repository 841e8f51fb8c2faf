"""The program: each verb calls one public function of the library.

Exit codes: 0 done; 2 the caller's mistake, told in one line on standard error; 1 anything else. With --json one object
stands on standard output and nothing else; progress and messages go to standard error.
"""

import os
import sys

from cyclopts import App, CycloptsError

from audiolm.commands import detecting, measuring, serving, sounds, training
from audiolm.errors import InputError

EXAMPLES = """
Examples:

  Go on from a recording, in the same voice; three times, with pictures:
    audiolm continue prompt.wav -o out.wav
    audiolm continue prompt.mp3 -o out.wav --samples 3 --plot out.png

  Listen while it is made:
    audiolm continue prompt.wav --seconds 60 --stream | aplay

  Speech from nothing; the same words in another voice; the codec alone:
    audiolm generate -o out.wav --seconds 5
    audiolm revoice in.wav -o out.wav --voice other.wav
    audiolm reconstruct in.wav -o out.wav --codebooks 3

  All of it in a browser, and for other programs by HTTP:
    audiolm serve

  Was it made by audiolm:
    audiolm detect out.wav

  A model of your own recordings, and what came out:
    audiolm plan recipes/tiny.toml data=my-recordings
    audiolm train recipes/tiny.toml data=my-recordings out=runs/mine
    audiolm info runs/mine/bundle
"""

app = App(
    name="audiolm",
    help="AudioLM learns to speak and to play from raw audio alone, and goes on from a few seconds of prompt.",
    help_epilogue=EXAMPLES,
    help_format="plaintext",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,  # `run` says it
)

app.command(sounds.continue_, name="continue")
for verb in (
    *(sounds.generate, sounds.revoice, sounds.reconstruct),
    *(training.tokenize, training.train, training.plan),
    *(measuring.evaluate, measuring.detect, measuring.info, measuring.doctor),
    serving.serve,
    *(detecting.train_detector, detecting.ratings),
):
    app.command(verb)


def main() -> None:
    """Entry point of the `audiolm` program."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the program and return its exit code."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_none")
    except (InputError, CycloptsError) as error:
        return _complain(" ".join(str(error).split()), 2)
    except KeyboardInterrupt:
        return _complain("stopped", 1)
    except BrokenPipeError:  # whoever listened has gone: nothing more may be written, not even what is buffered
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except SystemExit as stop:  # a training that was asked to stop says so itself
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
