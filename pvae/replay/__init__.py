"""Functions of tensors as graphs: recorded through any Python, simplified, compiled, captured, guarded, and replayed.

Knows nothing of training or of this package's programs: `svi` replays steps with it, `cells` evaluation.
"""
