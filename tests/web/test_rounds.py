"""Rounds that follow each other without a press of Run, and where they end."""

import pytest

from tests.web.test_look import shoot
from tests.web.test_runs import history

SAMPLING, SAME = "Sampling the next round's candidates", "the same candidates came again"
# What the server tells of a run that ends: each picker with its set, all of it judged or not.
TELL = """({pickers, ending, judged, stopped}) => {
  const {api} = app, prompt_id = `${Math.random()}`, workflow = app.rootGraph.id
  for (const node of pickers) {
    const [{set, candidates, images}] = app.graph.getNodeById(node).d3po.sets()
    const d3po = [{set, candidates, images, judged, workflow}]
    api.dispatchCustomEvent("executed", {prompt_id, node, display_node: node, output: {d3po}})
  }
  if (stopped) api.dispatchCustomEvent("executed",
    {prompt_id, node: "1", display_node: "1", output: {stopped: [stopped]}})
  api.dispatchCustomEvent(ending, {prompt_id, timestamp: 0})
}"""
# In place of a queued run, for what is told as above.
COUNT = """() => {
  window.queued = 0
  app.queuePrompt = async () => { window.queued += 1; return true }
}"""


def asks(picker):
    return any(one["set"] not in picker.value for one in picker.sets)


def judge(picker):
    """Answer about a set that has no answer, once there is one."""
    picker.until(lambda: asks(picker))
    picker.question()
    picker.focus()
    picker.press("1")


def stays(picker, condition):
    for _ in range(3):
        picker.page.wait_for_timeout(200)
        assert condition()


@pytest.mark.frontend
@pytest.mark.parametrize("when_missing, runs", [("stop here", 6), ("wait", 3)])
def test_round_follows_round_until_it_is_switched_off(picker, host, when_missing, runs):
    one = picker(candidates=2, when_missing=when_missing, size=71)
    one.let_the_seed_go_up()
    box = one.root.get_by_label("then the next round")
    box.check()
    assert one.root.get_by_label("continue when done").is_checked()
    before = history(host)
    one.run(wait=False)
    judge(one)
    judge(one)
    one.until(lambda: asks(one))
    one.question()
    assert len(one.value) == 2
    box.uncheck()
    judge(one)
    one.until(lambda: len(history(host) - before) == runs)
    stays(one, lambda: one.queue() == [[], []] and len(history(host) - before) == runs)


@pytest.mark.frontend
def test_where_the_same_candidates_come_again_it_ends_and_says_so(picker, host):
    one = picker(candidates=2, size=72, continue_when_done=True, next_round=True)
    before = history(host)
    one.run()
    judge(one)
    one.until(lambda: SAME in one.text)
    shoot(one, "rounds_ended")
    stays(one, lambda: len(history(host) - before) == 3 and one.queue() == [[], []])
    one.focus()
    one.press("[", "2")  # a changed answer is one more to learn from
    one.click("continue")
    one.until(lambda: len(history(host) - before) == 5 and SAME in one.text)


def test_what_a_run_ends_with_decides(picker, page):
    one = picker(candidates=2, size=73, next_round=True)
    other = one.copied()
    one.run()
    for each in (one, other):
        each.js("(node) => node.d3po.view.drawn.then(() => node.d3po.view.answer('>'))")
    other.js("(node) => { node.properties.next_round = false }")

    def queued(ending="execution_success", pickers=(one.node, other.node), judged=True, stopped="", new=True):
        if new:
            one.js(
                "(node) => { const {picks, sets} = node.d3po; const [{set}] = node.d3po.sets();"
                " picks.put(set, picks.of(set)) }"
            )
        before = page.evaluate("() => queued")
        told = {"pickers": list(pickers), "ending": ending, "judged": judged, "stopped": stopped}
        page.evaluate(TELL, told)
        one.settle()
        return page.evaluate("() => queued") - before

    page.evaluate(COUNT)
    try:
        assert queued() == 1 and SAMPLING in one.text and other.js("(node) => node.d3po.next") == ""
        shoot(one, "rounds_sampling")
        assert queued("execution_error") == queued("execution_interrupted") == 0 and SAMPLING not in one.text
        assert queued(judged=False) == queued(pickers=[]) == 0
        assert queued(pickers=[other.node]) == 0  # the picker that is not asked for rounds
        assert queued(new=False) == 0
        assert queued(stopped="stopped after update 3: KL is above stop_kl.") == 0
        assert "No further round: stopped after update 3: KL is above stop_kl." in one.text
    finally:
        page.evaluate("() => { delete app.queuePrompt }")
