"""From a folder of recordings to a model: data, the loops, the chain of steps, its gates and its plan."""
