"""What training does to pictures, in a real ComfyUI; results and sheets of pictures go to experiment_output/.

python dev.py experiment templates [--only NAME] [--seeds N]    what two rounds of each example workflow leave
python dev.py experiment artists [--taste T] [--labels N] [--seeds K]    what simulated artists end up with
python dev.py experiment sessions [--count N]    sessions drawn at random: does any break the model?
python dev.py experiment flow [--seeds N]    what an objective gains on a flow model, and on an epsilon model
python dev.py experiment rewards [--method M] [--objective O]    what LoRAs gain along a scorer's gradient
python dev.py experiment same FILE    hashes of what the pack makes, held against FILE where that is there

The first five are slow.
"""

import sys

from tools import (
    experiment_artists,
    experiment_flow,
    experiment_rewards,
    experiment_same,
    experiment_sessions,
    experiment_templates,
)

EXPERIMENTS = {
    "templates": experiment_templates.main,
    "artists": experiment_artists.main,
    "sessions": experiment_sessions.main,
    "flow": experiment_flow.main,
    "rewards": experiment_rewards.main,
    "same": experiment_same.main,
}


def main(arguments):
    if not arguments or arguments[0] not in EXPERIMENTS:
        raise SystemExit(__doc__)
    EXPERIMENTS[arguments[0]](arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
