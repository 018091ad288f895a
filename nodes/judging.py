"""Judges that are rules: objectives measured on the images."""

import numpy as np
from comfy_api.latest import io

from ..d3po_core.candidates import objectives
from ..d3po_core.candidates.judgement import pairs_from_scores
from ..d3po_core.candidates.preferences import Preferences
from .stored import DatasetType, record_pairs
from .types import CATEGORY, PreferencesType, Trajectories

# name in the node -> (measure of images and target colour, +1 where more is better)
OBJECTIVES = {
    "compressibility (smaller JPEG)": (lambda images, target: objectives.jpeg_size(images), -1),
    "incompressibility (larger JPEG)": (lambda images, target: objectives.jpeg_size(images), 1),
    "brightness (brighter)": (lambda images, target: objectives.brightness(images), 1),
    "darkness (darker)": (lambda images, target: objectives.brightness(images), -1),
    "colour (closer to the target)": (lambda images, target: objectives.colour_distance(images, target), -1),
    "sharpness (sharper)": (lambda images, target: objectives.sharpness(images), 1),
    "softness (softer)": (lambda images, target: objectives.sharpness(images), -1),
    "contrast (stronger)": (lambda images, target: objectives.contrast(images), 1),
    "contrast (weaker)": (lambda images, target: objectives.contrast(images), -1),
    "colourfulness (more colourful)": (lambda images, target: objectives.colourfulness(images), 1),
    "colourfulness (more muted)": (lambda images, target: objectives.colourfulness(images), -1),
    "symmetry (left as right)": (lambda images, target: objectives.asymmetry(images), -1),
}


def preferred_and_rejected(preferences, images):
    """The candidate with the most wins and the one with the most losses, or without any pair one that is
    liked and one that is not, [1, H, W, 3] each."""
    standing = np.zeros(len(images))
    for winner, loser in preferences.pairs:
        standing[winner] += 1
        standing[loser] -= 1
    if not preferences.pairs and preferences.liked:
        standing = np.array([{True: 1, None: 0, False: -1}[liked] for liked in preferences.liked])
    best, worst = int(standing.argmax()), int(standing.argmin())
    return images[best : best + 1], images[worst : worst + 1]


def said_of(values):
    """What was measured of each candidate [N, K], a line each."""
    for number, own in enumerate(values, 1):
        missing = "" if np.isfinite(own).all() else " (a score is missing: it is compared with none)"
        yield f"candidate {number}: {', '.join(f'{value:.4g}' for value in own)}{missing}"


def require_one_image_each(trajectory, images):
    if len(images) != trajectory.count:
        raise ValueError(
            f"images: there are {len(images)} images for {trajectory.count} candidates; wire the "
            "sampler's latent through VAE Decode to this input"
        )


def judged_outputs(about_mean, is_list=False):
    """What a judge that measures gives; lists have an entry for each set."""
    return [
        PreferencesType.Output(
            display_name="preferences", is_output_list=is_list, tooltip="Wire to the train step."
        ),
        io.Image.Output(
            display_name="preferred", is_output_list=is_list, tooltip="The candidate preferred most often."
        ),
        io.Image.Output(
            display_name="rejected", is_output_list=is_list, tooltip="The candidate rejected most often."
        ),
        io.Int.Output(
            display_name="pairs", is_output_list=is_list, tooltip="How many strict preferences were found."
        ),
        io.Float.Output(display_name="mean", is_output_list=is_list, tooltip=about_mean),
    ]


class D3POObjectivePreference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="D3POObjectivePreference",
            display_name="D3PO Objective Preference",
            category=CATEGORY,
            search_aliases=["auto preference", "reward", "judge", "compressibility", "brightness"],
            description=(
                "Prefers candidates by something measurable in place of a person. With a second objective "
                "only a candidate that is no worse in either and better in one is preferred; all else is a "
                "tie."
            ),
            inputs=[
                Trajectories.Input("trajectory", tooltip="The recorded candidates."),
                io.Image.Input("images", tooltip="The same candidates as images, from VAE Decode."),
                io.Combo.Input(
                    "objective",
                    options=list(OBJECTIVES),
                    default="brightness (brighter)",
                    tooltip="What makes one candidate better than another.",
                ),
                io.Combo.Input(
                    "second_objective",
                    options=["none", *OBJECTIVES],
                    default="none",
                    tooltip="A second wish. A preference then needs both to agree.",
                ),
                io.String.Input(
                    "target_colour",
                    default="#ff8800",
                    tooltip="The target of the colour objective, as #rrggbb. The others ignore it.",
                ),
                io.Float.Input(
                    "least_difference",
                    default=0.0,
                    min=0.0,
                    max=1e9,
                    step=0.001,
                    round=False,
                    tooltip="Candidates that differ by this much or less in the first objective tie. In its "
                    "unit, such as kB, brightness (0 to 1) or colour distance (0 to 1.7).",
                ),
                DatasetType.Input(
                    "dataset",
                    optional=True,
                    tooltip="Where the judgements are kept as well, under the objective's name: from D3PO "
                    "Save to Dataset or D3PO Load Sets.",
                ),
            ],
            outputs=judged_outputs("The objective's mean over the candidates, in its own unit."),
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, trajectory, images, objective, second_objective, target_colour, least_difference, dataset=None
    ):
        require_one_image_each(trajectory, images)
        names = [objective] + ([] if second_objective == "none" else [second_objective])
        measured, scores = measure(images, names, target_colour)
        pairs = [
            (w, l) for w, l in pairs_from_scores(scores) if scores[w, 0] - scores[l, 0] > least_difference
        ]
        # of two objectives neither is the score: wins against losses are
        single = scores[:, 0].tolist() if len(names) == 1 else ()
        preferences = Preferences(trajectory, tuple(pairs), source=" and ".join(names), scores=tuple(single))
        record_pairs(dataset, preferences, "objective")
        best, worst = preferred_and_rejected(preferences, images)
        text = "\n".join(said_of(measured))
        return io.NodeOutput(
            preferences,
            best,
            worst,
            len(preferences.pairs),
            float(measured[:, 0].mean()),
            ui={"text": [text], "objective": measured[:, 0].tolist()},
        )


def parse_target(text):
    try:
        return objectives.parse_colour(text)
    except ValueError as error:
        raise ValueError(f"target_colour: {error}") from error


def measure(images, names, target_colour):
    """(values in the objectives' own units, scores where more is better), [N, objectives] each."""
    target = parse_target(target_colour) if any(name.startswith("colour") for name in names) else None
    measures = [OBJECTIVES[name] for name in names]
    values = np.stack([function(images.cpu(), target) for function, _ in measures], axis=1)
    return values, values * [sign for _, sign in measures]
