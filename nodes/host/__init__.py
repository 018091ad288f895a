"""The seam to ComfyUI: names of what it computes, recording its sampling, and denoisers to train through
inside it."""

from .blip import TextImageScores
from .clip import ImageEncoder, TextEncoder
from .conditioning import EMPTY_NEGATIVE, Conditioning, conditioning_of
from .decoding import decoding
from .names import (
    carry,
    fingerprint,
    is_empty_text,
    loras_name,
    nodes_above,
    policy_name,
    sampling_name,
    set_name,
    texts_above,
)
from .patches import require_plain, require_repeatable, require_steps
from .recording import clean_candidates, finished, mask_of, record, to_sample
from .samplers import EULER_ANCESTRAL, SAMPLERS, goes_together, is_flow, sampler_problem
from .session import evaluate_inside, largest_pass, train_inside

__all__ = [
    "EULER_ANCESTRAL",
    "SAMPLERS",
    "EMPTY_NEGATIVE",
    "Conditioning",
    "ImageEncoder",
    "TextEncoder",
    "TextImageScores",
    "carry",
    "clean_candidates",
    "conditioning_of",
    "decoding",
    "evaluate_inside",
    "fingerprint",
    "finished",
    "goes_together",
    "is_empty_text",
    "is_flow",
    "largest_pass",
    "loras_name",
    "mask_of",
    "nodes_above",
    "policy_name",
    "record",
    "require_plain",
    "require_repeatable",
    "require_steps",
    "sampler_problem",
    "sampling_name",
    "set_name",
    "texts_above",
    "to_sample",
    "train_inside",
]
