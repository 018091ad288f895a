"""Runs that stop for picks, runs that wait for them, and runs that go on."""

import pytest

from tests.web.picker import Picker, wait_until_ready
from tests.web.test_judging import by_number, only, pairs


def outputs(entry, node):
    return entry["outputs"].get(node, {})


def history(host):
    return set(host.get("/history"))


@pytest.mark.frontend
def test_a_run_stops_silently_and_the_next_goes_on(picker, renderer):
    picker = picker(renderer=renderer, candidates=3, size=63)
    stopped = picker.run()
    assert stopped["status"]["status_str"] == "success" and not outputs(stopped, picker.others["preview"])
    picker.focus()
    picker.answer_as(by_number)
    went_on = picker.run()
    assert outputs(went_on, picker.others["preview"])["images"]
    assert outputs(went_on, picker.node)["d3po"][0]["judged"] is True


@pytest.mark.frontend
def test_the_last_answer_continues_the_run_and_all_above_comes_from_the_cache(picker, host):
    picker = picker(candidates=3, size=62, continue_when_done=True)
    picker.run()
    before = history(host)
    picker.focus()
    picker.answer_as(by_number)
    went_on = picker.next_run(before)
    cached = [
        node
        for event, data in went_on["status"]["messages"]
        if event == "execution_cached"
        for node in data["nodes"]
    ]
    assert picker.others["source"] in cached and outputs(went_on, picker.others["preview"])["images"]


@pytest.mark.frontend
def test_a_run_goes_on_with_the_seed_it_had_although_the_widget_shows_the_next(picker, host):
    picker = picker(candidates=2, size=61, continue_when_done=True)
    picker.let_the_seed_go_up()
    picker.run()
    shown = only(picker.sets)["set"]
    before = history(host)
    picker.focus()
    picker.question()
    picker.press("1")
    went_on = picker.next_run(before)
    told = only(outputs(went_on, picker.node)["d3po"])
    assert told["set"] == shown and told["judged"]
    saved = went_on["prompt"][3]["extra_pnginfo"]["workflow"]
    node = only(node for node in saved["nodes"] if node["type"] == "D3POPairPreference")
    assert shown in node["widgets_values"][0]


def test_without_continue_when_done_nothing_runs_until_the_button_is_pressed(picker, host):
    picker = picker(candidates=2, size=60)
    picker.run()
    before = history(host)
    picker.question()
    picker.focus()
    picker.press("1")
    assert picker.queue() == [[], []] and history(host) == before
    picker.click("continue")
    assert outputs(picker.next_run(before), picker.others["preview"])["images"]


def test_several_sets_of_one_run_are_judged_in_turn(picker, host):
    picker = picker(candidates=2, sets=3, continue_when_done=True)
    picker.run()
    before = history(host)
    picker.focus()
    for number in (1, 2, 3):
        assert f"set {number} of 3" in picker.text
        picker.question()
        picker.press("1")
    went_on = picker.next_run(before)
    assert len(outputs(went_on, picker.others["preview"])["images"]) == 3
    assert len(picker.value) == 3


@pytest.mark.frontend
def test_two_queued_runs_are_both_there_to_judge(picker, host):
    picker = picker(candidates=2)
    picker.js(
        "(node) => { const w = app.graph.getNodeById(1).widgets; "
        "w.find(x => x.name === 'control_after_generate').value = 'increment' }"
    )
    picker.js("() => app.queuePrompt(0, 2)")
    picker.until(lambda: len(picker.sets) == 2)
    picker.focus()
    for _ in range(2):
        picker.question()
        picker.press("1")
    assert len(picker.value) == 2 and picker.kind == "done"
    before = history(host)
    picker.click("continue")
    assert only(outputs(picker.next_run(before), picker.node)["d3po"])["judged"]


@pytest.mark.frontend
def test_a_waiting_run_goes_on_after_the_last_answer(picker, host, renderer):
    picker = picker(renderer=renderer, candidates=3, when_missing="wait", size=59)
    before = history(host)
    picker.run(wait=False)
    picker.question()
    assert "The run waits for your picks" in picker.text and len(picker.queue()[0]) == 1
    picker.focus()
    picker.answer_as(by_number)
    went_on = picker.next_run(before)
    assert outputs(went_on, picker.others["preview"])["images"]
    assert "waits" not in picker.text and pairs(picker, 3) == [(1, 0), (2, 0), (2, 1)]


def test_an_answer_that_cannot_be_kept_is_told_and_can_be_given_again(picker, host, page):
    picker = picker(candidates=2, when_missing="wait", size=39)
    before = history(host)
    picker.run(wait=False)
    picker.question()
    sentence = "dataset: index.sqlite: the disk is full. Make room on it."
    page.route("**/d3po/answer", lambda route: route.fulfill(status=507, json={"error": sentence}))
    picker.focus()
    picker.press("1")
    page.get_by_text(sentence).first.wait_for()
    picker.until(lambda: "The run waits for your picks" in picker.text)
    assert picker.kind == "done" and len(picker.value) == 1 and picker.queue()[0]
    page.unroute("**/d3po/answer")
    picker.click("continue")
    went_on = picker.next_run(before)
    assert outputs(went_on, picker.others["preview"])["images"] and history(host) - before == {
        went_on["prompt"][1]
    }
    page.problems.clear()


@pytest.mark.frontend
@pytest.mark.parametrize("how", ["the host's button", "the picker's button"])
def test_an_interrupt_ends_the_wait_and_the_next_job_runs(picker, host, how):
    picker = picker(candidates=2, when_missing="wait", size=58)
    before = history(host)
    picker.run(wait=False)
    picker.question()
    next_job = host.queue(
        {
            "1": {
                "class_type": "TestCandidates",
                "inputs": {"seed": 1, "candidates": 2, "sets": 1, "size": 16},
            },
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 1]}},
        }
    )
    assert picker.queue()[1] == [next_job]
    if how == "the picker's button":
        picker.click("cancel")
    else:
        picker.page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    assert host.wait(next_job, 30)["status"]["status_str"] == "success"
    interrupted = only(host.get("/history")[prompt] for prompt in history(host) - before - {next_job})
    assert any(event == "execution_interrupted" for event, _ in interrupted["status"]["messages"])
    picker.until(lambda: "waits" not in picker.text)
    picker.question()
    picker.focus()
    picker.press("1")
    assert len(picker.value) == 1


# ask the server what lacks picks, and keep its reply until release()
HOLD = """() => {
    const {api} = app, ask = api.fetchApi
    window.held = []
    window.release = () => { delete api.fetchApi; held.forEach((go) => go()) }
    api.fetchApi = async function (path) {
        const reply = await ask.apply(api, arguments)
        if (path === "/d3po/pending") await new Promise((go) => held.push(go))
        return reply
    }
    api.dispatchCustomEvent("status", {exec_info: {queue_remaining: 1}})
}"""


def test_a_late_reply_of_the_server_does_not_bring_a_wait_back_that_is_over(picker):
    picker = picker(candidates=2, when_missing="wait", size=59)
    picker.run(wait=False)
    picker.question()
    picker.page.evaluate(HOLD)
    picker.until(lambda: picker.page.evaluate("() => held.length"))
    picker.click("cancel")
    picker.until(lambda: "waits" not in picker.text)
    picker.page.evaluate("() => release()")
    picker.page.wait_for_timeout(200)
    assert "waits" not in picker.text


def test_a_late_reply_of_the_server_puts_no_older_set_after_newer_ones(picker):
    picker = picker(candidates=2, size=58, seed=1)
    picker.run()
    picker.page.evaluate(HOLD)
    picker.until(lambda: picker.page.evaluate("() => held.length"))
    picker.run()  # the same set, of a newer run
    picker.js("() => { app.graph.getNodeById(1).widgets.find((w) => w.name === 'seed').value = 2 }")
    picker.run()
    shown = [entry["set"] for entry in picker.sets]
    picker.page.evaluate("() => release()")
    picker.page.wait_for_timeout(200)
    assert len(shown) == 2 and [entry["set"] for entry in picker.sets] == shown


def test_two_waiting_runs_are_answered_one_after_the_other(picker, host):
    picker = picker(candidates=2, when_missing="wait")
    picker.js(
        "(node) => { const w = app.graph.getNodeById(1).widgets; "
        "w.find(x => x.name === 'control_after_generate').value = 'increment' }"
    )
    before = history(host)
    picker.js("() => app.queuePrompt(0, 2)")
    picker.question()
    picker.focus()
    picker.press("1")
    picker.until(lambda: any(one["waiting"] for one in picker.sets) and len(picker.sets) == 2)
    picker.question()
    picker.press("2")
    picker.until(lambda: len(history(host) - before) == 2)
    for prompt in history(host) - before:
        assert outputs(host.get("/history")[prompt], picker.others["preview"])["images"]
    assert len(picker.value) == 2


def reloaded(picker):
    picker.page.reload()
    wait_until_ready(picker.page)
    picker.until(lambda: picker.js("(node) => Boolean(node?.d3po)"))


def test_a_restart_of_the_server_and_reloads_half_way_cost_no_answer(host, new_page):
    picker = Picker.build(new_page(), host, candidates=4, when_missing="wait", size=55)
    picker.page.wait_for_function("""() => Object.entries(localStorage).some(([key, text]) =>
        key.startsWith("Comfy.Workflow.Draft.") && text.includes("D3POPairPreference"))""")
    picker.run(wait=False)
    picker.focus()
    for _ in range(2):
        picker.question()
        picker.press("1")
    done = picker.value
    host.restart()
    reloaded(picker)
    assert picker.value == done and picker.kind == "empty" and "waits" not in picker.text
    before = history(host)
    picker.run(wait=False)
    picker.question()
    assert "2 done, 4 to do" in picker.text and "waits" in picker.text
    picker.focus()
    picker.press("1")
    done = picker.value
    reloaded(picker)  # at once: the last answer is a moment old
    picker.question()
    assert picker.value == done and "3 done, 3 to do" in picker.text and "waits" in picker.text
    picker.focus()
    picker.answer_as(by_number)
    assert outputs(picker.next_run(before), picker.others["preview"])["images"]


def test_a_second_tab_sees_the_wait_and_learns_the_answers_of_the_first(picker, host, page, new_page):
    first = picker(candidates=3, when_missing="wait", size=57)
    before = history(host)
    first.run(wait=False)
    first.question()
    workflow = page.evaluate("() => app.graph.serialize()")
    other = new_page(beside=page)
    other.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
    second = Picker(other, host, first.node, **first.others)
    second.question()
    assert "waits" in second.text and not second.page.locator("dialog[open]").count()
    first.focus()
    first.answer_as(by_number)
    first.next_run(before)
    second.until(lambda: "waits" not in second.text)
    assert second.value == first.value and second.kind == "done"


@pytest.mark.frontend
def test_a_browser_that_was_closed_finds_the_wait_again(picker, host, page, new_page):
    first = new_page()
    one = Picker.build(first, host, candidates=2, when_missing="wait", size=56)
    before = history(host)
    one.run(wait=False)
    one.question()
    workflow = first.evaluate("() => app.graph.serialize()")
    first.close()
    page.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)  # in another browser profile
    two = Picker(page, host, one.node, **one.others)
    two.question()
    assert "waits" in two.text
    two.focus()
    two.press("2")
    assert outputs(two.next_run(before), two.others["preview"])["images"]


def test_images_that_are_gone_are_told_and_come_back(picker, host, page):
    picker = picker(candidates=3, size=54)
    page.route("**/view?*", lambda route: route.fulfill(status=404))
    picker.run()
    picker.until(lambda: "These images are gone" in picker.text)
    picker.focus()
    page.keyboard.press("1")
    assert picker.value == {}
    page.unroute("**/view?*")
    picker.run()
    picker.question()
    assert "gone" not in picker.text
    page.problems.clear()


def test_two_pickers_that_wait_for_the_same_set_are_each_asked(picker, host):
    one = picker(candidates=2, when_missing="wait", size=42)
    before = history(host)
    copy = one.js("""(node) => {
        app.canvas.selectNode(node)
        app.canvas.copyToClipboard()
        app.canvas.pasteFromClipboard({connectInputs: true})
        const other = app.graph._nodes.at(-1)
        other.pos = [330, 900]
        return String(other.id)
    }""")
    other = Picker(one.page, host, copy)
    one.run(wait=False)
    one.until(lambda: one.sets and other.sets and one.sets[0]["waiting"] and other.sets[0]["waiting"])
    one.js("(node) => node.d3po.view.drawn.then(() => node.d3po.view.answer('>'))")
    one.until(lambda: not one.sets[0]["waiting"])
    assert one.value and other.value == {} and other.sets[0]["waiting"]
    other.js("(node) => node.d3po.view.drawn.then(() => node.d3po.view.answer('<'))")
    assert one.next_run(before)["status"]["status_str"] == "success"
    assert only(one.value.values())["pairs"] == [only(other.value.values())["pairs"][0][::-1]]


def test_a_run_that_waits_for_what_another_was_given_goes_on(picker, host):
    one = picker(candidates=2, when_missing="wait", size=41)
    before = history(host)
    one.js("() => app.queuePrompt(0, 2)")  # the same set twice, both without picks
    one.question()
    one.focus()
    one.press("1")
    one.until(lambda: len(history(host) - before) == 2)
    assert {host.get("/history")[prompt]["status"]["status_str"] for prompt in history(host) - before} == {
        "success"
    }


def test_a_run_that_no_page_queued_is_shown_on_none(picker, host):
    one = picker(candidates=2, size=40)
    host.run(
        {
            one.node: {
                "class_type": "D3POPairPreference",
                "inputs": {"trajectory": ["s", 0], "images": ["s", 1], "picks": ""},
            },
            "s": {
                "class_type": "TestCandidates",
                "inputs": {"seed": 77, "candidates": 2, "sets": 1, "size": 16},
            },
        }
    )
    one.run()
    assert len(one.sets) == 1 and one.question()
