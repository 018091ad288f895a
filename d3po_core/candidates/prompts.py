"""Prompts drawn from a list."""

import random


def drawn(prompts: str, count: int, seed: int) -> tuple[list[str], list[int]]:
    """(count prompts, a seed of each) of the lines of a text that are not empty. Every one is drawn once
    before one is drawn again. Raises ValueError where there is none."""
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not lines:
        raise ValueError("prompts: write at least one prompt, one in each line")
    rng = random.Random(seed)
    made: list[str] = []
    while len(made) < count:
        made += rng.sample(lines, len(lines))
    return made[:count], [rng.getrandbits(48) for _ in range(count)]
