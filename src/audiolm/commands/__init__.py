"""The command-line verbs. Each calls one public function of the library; `audiolm.cli` registers them."""
