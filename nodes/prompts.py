"""The prompts' texts of what a node sees."""

from . import host
from .together import ranks


def prompts_of(node, prompt, count):
    """The texts of the prompts of so many sets or batches, None each where they are not known: what is wired,
    of which the last one serves for the rest, or what is written above the node."""
    above = host.texts_above(node.hidden.dynprompt, node.hidden.unique_id).get("prompts", [])
    if len(above) > 1:
        above = ranks().part(above)
    texts = list(prompt) or (above if len(above) in (1, count) else [None])
    return (texts + texts[-1:] * (count - len(texts)))[:count]


def prompts_by_set(node, preferences):
    """{set's name: its prompt's text} of the judged sets of all ComfyUIs, where it is known."""
    texts = prompts_of(node, (), len(preferences))
    own = {p.candidates.set_id: text for p, text in zip(preferences, texts) if text}
    return {name: text for part in ranks().gathered(own) for name, text in part.items()}


def text_of(node, prompt):
    """The text of a node's one prompt."""
    return prompts_of(node, [prompt] if prompt else (), 1)[0]
