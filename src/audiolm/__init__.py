"""AudioLM: learn to speak and play from raw audio alone (Borsos et al. 2022)."""
