"""`python -m audiolm`: the program, for when its script is not on the PATH."""

from audiolm.cli import main

main()
