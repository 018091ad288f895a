"""What was made, and what was said of it: trajectories, images, judgements and the preferences they imply."""
