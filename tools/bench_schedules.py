"""How the paper's weighting shares the gradient over the steps of the host's schedules, on SD1.5's noise.

The gradient of a step's log-ratio with respect to the predicted noise is z / pull with z ~ N(0, I)
(transition.Ancestral). So a step's share of the squared gradient is 1 / pull^2 over the sum of all steps'.
"""

import re
import sys

import torch

from d3po_core.candidates.kernels import Ancestral
from tools.host import ROOT, comfyui_folder
from tools.launch_host import mend_torchaudio, mend_torchvision, torch_is_cpu_build

DOC = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- measured: python dev.py bench schedules --write -->", "<!-- end of schedules -->"
STEPS = 20
PAPERS = "(D3PO's code)"


def shares(sigmas, kernel=Ancestral(1.0)):
    """Each step's share of the squared gradient under the paper's weighting, [T]; 0 if it is not random."""
    weights = [
        1 / float(kernel.pull(*step)) ** 2 if kernel.std(*step) > 0 else 0.0
        for step in zip(sigmas, sigmas[1:])
    ]
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


def schedules():
    """{name: sigmas [T + 1]} of the host's schedulers, and of D3PO's code.

    The latter is diffusers' DDIM with `leading` timesteps and an offset of 1, whose last step ends at the
    smallest noise level instead of none."""
    sys.path.insert(0, str(comfyui_folder()))
    if torch_is_cpu_build():
        mend_torchvision()
        mend_torchaudio()
    from comfy.cli_args import args

    args.cpu = True
    import comfy.model_sampling
    import comfy.samplers

    levels = comfy.model_sampling.ModelSamplingDiscrete()  # its defaults are SD1.5's
    found = {
        name: comfy.samplers.calculate_sigmas(levels, name, STEPS)
        for name in comfy.samplers.KSampler.SCHEDULERS
    }
    ratio = len(levels.sigmas) // STEPS
    timesteps = [1 + ratio * i for i in reversed(range(STEPS))]
    return found | {PAPERS: torch.stack([*levels.sigmas[timesteps], levels.sigmas[0]])}


def table(found):
    """Markdown, a row for each schedule, the most even first."""
    rows = []
    for name, sigmas in found.items():
        share = shares(sigmas)
        first = int(share.argmax())
        rows.append(
            (
                float(share[first]),
                f"| {name} | {share[first]:.2f} | {first + 1} of {len(share)}, sigma "
                f"{sigmas[first]:.2f} to {sigmas[first + 1]:.2f} | "
                f"{1 / float(share.square().sum()):.1f} |",
            )
        )
    return "\n".join(
        [
            "| scheduler | largest share of a step | which | steps that count |",
            "|---|---|---|---|",
            *(row for _, row in sorted(rows)),
        ]
    )


def main(write):
    made = table(schedules())
    print(made)
    if write:
        text = DOC.read_text("utf-8")
        DOC.write_text(
            re.sub(
                f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: f"{BEGIN}\n{made}\n{END}", text, flags=re.S
            ),
            "utf-8",
        )
