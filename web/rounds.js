// Rounds by themselves: once a run with a person's new picks has ended well, the workflow is queued again, as
// if Run had been pressed. Each needs a new answer, so that nothing can go round and round.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { changed, nodeOf, root } from "./inbox.js"
import { tr } from "./language.js"

/**
 * @typedef {object} Run what a run has told so far
 * @property {string} workflow "" while no picker has told of it
 * @property {string[]} pickers execution ids
 * @property {boolean} open whether a set lacks picks
 * @property {string} stopped why training ended early, "" where it did not
 */

const SAMPLING = "Sampling the next round's candidates."
const NOTHING_NEW =
  "No further round: the same candidates came again. Let the seed or the prompt change after each run."
const ENDED = "No further round: {why}"

/** By prompt id, until it ends.
 *  @type {Map<string, Run>} */
const runs = new Map()
/** Workflows in which a person has answered since a run last ended with all of its picks.
 *  @type {Set<string>} */
const answered = new Set()
/** What there is to say of the next round, by workflow.
 *  @type {Map<string, string>} */
const words = new Map()

/** A person has answered in the workflow on screen. */
export function hasAnswered() {
  answered.add(root().id)
  words.delete(root().id)
}

/** What there is to say of the next round of the workflow on screen, or "". */
export const wordsOfNext = () => words.get(root().id) ?? ""

/** @param {string} workflow
 *  @param {string} text */
function say(workflow, text) {
  words.set(workflow, text)
  changed()
}

/** The picker that asks for rounds by an execution id; a blind session is no round.
 *  @param {string} node */
function pickerAt(node) {
  const picker = nodeOf(node)?.d3po
  return picker?.blind ? undefined : picker
}

/** @param {ServerEvents["executed"]} told */
function hear({ prompt_id: prompt, node, output }) {
  const why = output?.stopped?.[0] ?? ""
  // What comes from the cache may be of a copy of this workflow. Where there is a new answer, it does not.
  const sets = (pickerAt(node) && output?.d3po)?.filter(({ workflow }) => workflow === root().id) ?? []
  if (!why && !sets.length) return
  const run = runs.get(prompt) ?? { workflow: "", pickers: [], open: false, stopped: "" }
  runs.set(prompt, run)
  run.stopped ||= why
  if (!sets.length) return
  run.workflow = root().id
  run.pickers.push(node)
  run.open ||= sets.some(({ judged }) => !judged)
}

/** A run has ended well.
 *  @param {Run} run */
async function follow({ workflow, pickers, open, stopped }) {
  if (workflow !== root().id) return // another one is on screen, which Run would queue
  const automatic = words.get(workflow) === tr(SAMPLING)
  say(workflow, "")
  if (open) return
  const isNew = answered.delete(workflow)
  if (!pickers.some((node) => pickerAt(node)?.settings.next_round)) return
  if (isNew && stopped) say(workflow, tr(ENDED, { why: stopped }))
  else if (isNew) {
    say(workflow, tr(SAMPLING))
    if (!(await app.queuePrompt(0, 1))) say(workflow, "") // the host says why
  } else if (automatic) say(workflow, tr(NOTHING_NEW))
}

/** A run has failed or was interrupted.
 *  @param {{ prompt_id: string }} told */
function giveUp({ prompt_id: prompt }) {
  runs.delete(prompt)
  words.clear()
  changed()
}

app.registerExtension({
  name: "D3PO.Rounds",
  setup() {
    api.addEventListener("executed", ({ detail }) => hear(detail))
    api.addEventListener("execution_error", ({ detail }) => giveUp(detail))
    api.addEventListener("execution_interrupted", ({ detail }) => giveUp(detail))
    api.addEventListener("execution_success", ({ detail }) => {
      const run = runs.get(detail.prompt_id)
      runs.delete(detail.prompt_id)
      if (run) follow(run)
    })
  }
})
