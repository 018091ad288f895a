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
            sheet.paste(image.convert("RGB").resize((width, height), Image.LANCZOS),
                        (GAP + x * (width + GAP), place * block + MARGIN + y * (height + GAP)))
    sheet.save(path)


def by_round(values, name, path):
    """Mean of the objective over the candidates of each round, with its 95% interval over the sets."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    means = np.array([np.mean(round_) for round_ in values])
    sets = [np.mean(round_, axis=1) for round_ in values]
    half = np.array([1.96 * np.std(s, ddof=1) / len(s) ** 0.5 if len(s) > 1 else 0 for s in sets])
    rounds = np.arange(1, len(values) + 1)
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.fill_between(rounds, means - half, means + half, alpha=0.2)
    axes.plot(rounds, means, marker="o")
    axes.set(xlabel="round", ylabel=name, title=f"{name} of the recorded candidates")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
