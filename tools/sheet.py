"""Pictures of results: a sheet of images before and after, and the objective by round."""

import numpy as np
from PIL import Image, ImageDraw

SCALE, GAP, MARGIN = 2, 6, 26


def as_batch(images):
    """PIL images -> [N, H, W, 3] in 0...1, the host's IMAGE layout."""
    return np.stack([np.asarray(image.convert("RGB")) for image in images]) / 255


def before_after(before, after, path, columns=16):
    """The same seeds in the same places: a block of images before, and below it one of those after."""
    width, height = (size * SCALE for size in before[0].size)
    rows = -(-len(before) // columns)
    block = rows * (height + GAP) + MARGIN
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, 2 * block + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (title, images) in enumerate((("before", before), ("after, the same seeds", after))):
        draw.text((GAP, place * block + 4), title, fill="black", font_size=16)
        for i, image in enumerate(images):
            x, y = i % columns, i // columns
            sheet.paste(
                image.convert("RGB").resize((width, height), Image.LANCZOS),
                (GAP + x * (width + GAP), place * block + MARGIN + y * (height + GAP)),
            )
    sheet.save(path)


def by_round(differences, spread, name, path):
    """How far the objective has moved on the same held-out seeds after each round, [round][seed].

    With its 95% interval, and one standard deviation between a prompt's candidates for scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    differences = [np.asarray(round_) for round_ in differences]  # torch's own are no arrays to numpy
    means = np.array([0.0] + [np.mean(round_) for round_ in differences])
    half = np.array([0.0] + [1.96 * np.std(round_, ddof=1) / len(round_) ** 0.5 for round_ in differences])
    rounds = np.arange(len(means))
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.axhline(
        spread, color="gray", linestyle="--", label="one standard deviation between candidates of a prompt"
    )
    axes.fill_between(rounds, means - half, means + half, alpha=0.2)
    axes.plot(rounds, means, marker="o", label=f"{len(differences[0])} held-out seeds, with 95% interval")
    axes.set(xlabel="round", ylabel=f"change in {name}", xticks=rounds)
    axes.legend(loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
