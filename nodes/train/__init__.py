"""The train step: what it shows, what it does, and what it says."""
