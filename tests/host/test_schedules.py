"""The page's table of schedules is what the host's schedulers give."""

import subprocess
import sys

from tools.bench_schedules import BEGIN, DOC, END
from tools.host import ROOT


def test_the_table_of_schedules_is_what_the_command_makes():
    made = subprocess.run(
        [sys.executable, "-m", "tools.bench", "schedules"], cwd=ROOT, capture_output=True, text=True
    )
    table = DOC.read_text("utf-8").split(BEGIN)[1].split(END)[0].strip()
    assert made.stdout.strip().endswith(table), made.stderr[-2000:]
    assert "| normal | 0.85 |" in table and "| sgm_uniform | 0.12 |" in table
