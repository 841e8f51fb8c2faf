"""Evaluation as in the paper: the measures, the runner that applies them, the report with its page, and the listening test."""
