"""Runs on disk: LoRA, optimizer state and checkpoints, the progress of a train step, plots, events."""
