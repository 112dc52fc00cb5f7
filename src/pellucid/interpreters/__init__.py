"""Interpreters: `(model, x, classes) -> maps [b m ...]`, signed, differentiable exactly when grad mode is on."""
