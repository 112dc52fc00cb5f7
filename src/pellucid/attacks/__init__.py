"""Attacks: `(model, x, y) -> adversarial images`, in the ball and in [0, 1]. `evaluate` decides what succeeded."""
