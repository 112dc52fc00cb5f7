"""Objectives: `(model, x, y, step) -> (scalar loss, its detached terms)`. The training loop does the rest."""
