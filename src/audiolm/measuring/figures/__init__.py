"""The figures for the paper's tables, one file per subject. Each function takes a Bench and returns figures by name."""
