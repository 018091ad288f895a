"""What was made, and what was said of it: recorded trajectories, images, judgements and the preferences they imply."""
