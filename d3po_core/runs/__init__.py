"""Runs on disk: the LoRA with its optimizer's state, checkpoints, the progress of a train step, plots and events."""
