"""Preferences on disk: sets of candidates and what several people said of them."""
