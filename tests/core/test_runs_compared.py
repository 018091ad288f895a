"""What the last blind comparison said is kept with a run."""

from d3po_core.runs import store
from d3po_core.runs.compared import COMPARISON, Compared, comparison_of, keep_compared
from d3po_core.training.win_rate import WinRate
from tests.core.test_undo import record, tensors


def test_the_last_comparison_is_listed_and_goes_with_the_run(tmp_path):
    run = tmp_path / "run"
    keep_compared(run, WinRate(1, 0, 0), 1.0)
    assert not run.exists(), "a comparison makes no run"
    store.save_run(run, tensors(2), record(2, [0]))
    for rate, when in ((WinRate(7, 2, 1), 10.0), (WinRate(7, 2, 1), 20.0)):
        keep_compared(run, rate, when)
    assert comparison_of(run) == Compared(WinRate(7, 2, 1), 10.0), "the same again is no new one"
    keep_compared(run, WinRate(8, 2, 1), 30.0)
    (told,) = store.list_runs(tmp_path)
    assert told.compared == Compared(WinRate(8, 2, 1), 30.0)
    assert told.size == sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    for damage in ("", "[]", '{"wins": 1}', '{"wins": "x", "losses": 0, "ties": 0, "when": 0}'):
        (run / COMPARISON).write_text(damage)
        assert store.list_runs(tmp_path)[0].compared is None
    assert store.delete(tmp_path, "run") == [] and not run.exists()
