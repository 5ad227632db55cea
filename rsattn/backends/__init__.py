"""The ways to compute residual attention, a file each; `dispatch` chooses among them, `base` says what one is."""
