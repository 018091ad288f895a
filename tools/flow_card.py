"""Measure the flow model beside the epsilon model and write its sheet: python -m tools.flow_card

Every prompt once for each model, as the laboratory samples: euler_ancestral, 10 steps, cfg 2, in bfloat16.
"""

import torch
from PIL import Image

from tools.experiment_artists import OUT
from tools.lab.namer import NAMES, WORDS, Namer
from tools.lab.session import CFG, PROMPTS, STEPS
from tools.lab.studio import Studio
from tools.make_model import MODEL_DIR
from tools.model_card import draw, interval
from tools.model_pictures import caption


def main():
    texts, namer = [caption(*prompt) for prompt in PROMPTS], None
    for flow in (False, True):
        studio = Studio(flow=flow)
        namer = namer or Namer(studio, OUT / "namer.pt")
        made = studio.record(texts, range(len(texts)), 1, STEPS, CFG)
        images = studio.pictures(torch.cat([one.finished for one in made]))
        objects = namer.names(images) == [NAMES.index(name) for name, _ in PROMPTS]
        grounds = namer.words(images) == [WORDS.index(word) for _, word in PROMPTS]
        print(f"{studio.name}: objects {interval(objects)}, grounds {interval(grounds)}", flush=True)
        print(*[f"  not so named: {text}" for text, right in zip(texts, objects) if not right], sep="\n")
    pictures = [Image.fromarray((255 * image).round().astype("uint8")) for image in images]
    draw(pictures, MODEL_DIR / "flow_samples.jpg", quality=70)


if __name__ == "__main__":
    main()
