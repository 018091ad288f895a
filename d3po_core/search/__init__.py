"""Better pictures without training: a search among the noises that they are sampled from."""
