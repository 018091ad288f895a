"""What learns: losses and their methods, what an update adds up, the loop, adapters and optimizers."""
