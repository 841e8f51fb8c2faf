"""The verbs of the program. Each calls one public function of the library; `audiolm.cli` names them all."""
