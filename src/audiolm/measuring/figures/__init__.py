"""The figures of the paper's tables, a file a subject: each takes a Bench and gives figures by name."""
