"""The paper's evidence: pure measures, the runner over them, and what people read, hear and judge."""
