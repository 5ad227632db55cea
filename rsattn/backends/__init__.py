"""The backends, one file each; `base` defines what a backend is, and `dispatch` chooses one for each call."""
