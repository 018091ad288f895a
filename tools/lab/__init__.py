"""The laboratory: what simulated artists end up with, at seconds a round, without a server."""
