"""What learns: losses and the methods made of them, what an update adds up, the loop, adapters, optimizers."""
