"""`python -m audiolm`: the program, where its script is not on the path."""

from audiolm.cli import main

main()
