"""How long an artist who judges in the sidebar waits for pictures while runs record, in Chromium on the real
frontend.

Several runs of the template d3po_record_and_judge_later are queued, each with two prompts. Once the first has
recorded, its sets are judged by "best of N", a set in as many seconds as are asked for, while the others
record. A time runs from the key that finishes a set to the frame with the next set's pictures, as the page
itself measures it (web/dataset_judging.js).
"""

import statistics
import time

from tests.web.datasets_panel import IDLE, DatasetsPanel
from tests.web.picker import open_page
from tools.bench_picker import chromium
from tools.demo import node_of
from tools.host import ROOT, Host, make_base
from tools.workflow import load, to_api

WORKFLOW = ROOT / "example_workflows" / "d3po_record_and_judge_later.json"
PROMPTS = 2  # of a run


def recording(host, dataset, seed):
    """A run of the template that records, and looks at nothing."""
    prompt = to_api(load(WORKFLOW), host.object_info())
    for class_type in ("D3PODatasetStatistics", "D3POLoadSets", "D3POPairPreference"):
        del prompt[node_of(prompt, class_type)]
    prompt[node_of(prompt, "D3POPrompts")]["inputs"] |= {"count": PROMPTS, "seed": seed}
    prompt[node_of(prompt, "D3POSaveToDataset")]["inputs"]["dataset"] = dataset
    return prompt


def measure(runs, pace):
    with Host(make_base(ROOT / "bench_output" / "base")) as host, chromium() as browser:
        dataset = f"bench {time.time_ns()}"
        host.run(recording(host, dataset, 0))
        began = time.monotonic()
        for seed in range(1, runs):
            host.queue(recording(host, dataset, seed))
        panel = DatasetsPanel(open_page(browser, host), host, dataset)
        panel.open()
        panel.act(panel.card, "judge")
        panel.root.locator(".d3po-mode").select_option("best")
        for _ in range(runs * PROMPTS):
            panel.question()
            panel.page.wait_for_timeout(1000 * pace)
            panel.press("1")
        seconds = time.monotonic() - began
        panel.sets_judged(runs * PROMPTS)
        idle = panel.page.evaluate(IDLE)
        print(
            f"{runs} runs of {PROMPTS} sets, {pace} s a set: idle a set {statistics.median(idle):.2f} s in "
            f"the median, {statistics.fmean(idle):.2f} s on average, {max(idle):.2f} s at most; "
            f"{seconds:.0f} s in all",
            flush=True,
        )
