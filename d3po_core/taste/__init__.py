"""A person's taste as a small model of its own: what it sees of a candidate, and how it tells which is liked
better."""
