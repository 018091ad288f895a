// The sets of candidates that runs have shown, by workflow and node; what the server says of them; and what
// goes back.
//
// The inbox outlives the widgets: ComfyUI makes every node anew when it undoes, redoes or switches workflows.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { tr } from "./language.js"

export const WIN_RATE = "D3POWinRate"
const PICKERS = ["D3POPairPreference", WIN_RATE]
const MOST_SETS = 500

/** @typedef {import("./judgement.js").Judgement} Judgement */
/** @typedef {import("./stage.js").Reference} Reference */

/**
 * @typedef {object} Told what the server says of one set
 * @property {string} set
 * @property {number} candidates
 * @property {Reference[]} images of each candidate
 * @property {string} [text] the prompt, where it is known
 * @property {string | null} [workflow]
 * @property {boolean} [judged] whether the run had picks for it
 *
 * @typedef {object} Shown what a node of a run shows
 * @property {string} prompt_id
 * @property {string} node an execution id
 * @property {string | null} workflow
 * @property {boolean} waiting whether the run waits for its picks
 * @property {Told[]} sets
 *
 * @typedef {object} Entry a set, where it was shown, and by which run last
 * @property {string} set
 * @property {number} candidates
 * @property {Reference[]} images
 * @property {string} text the prompt, where it is known
 * @property {string} workflow
 * @property {string} node an execution id
 * @property {string} prompt the id of the newest run that showed the set there
 * @property {boolean} waiting
 *
 * @typedef {object} Closed a wait that has ended
 * @property {string} prompt_id
 * @property {string} node an execution id
 * @property {Record<string, Judgement>} picks
 */

/** By workflow, node and set, oldest first.
 *  @type {Map<string, Entry>} */
const sets = new Map()
/** Waits, as "prompt node", that were answered from here or have ended: a reply of the server may be older.
 *  @type {Set<string>} */
const over = new Set()
/** @type {(prompt: string, node: string) => string} */
const waitOf = (prompt, node) => `${prompt} ${node}`
const events = new EventTarget()
let heard = 0 // how often runs have told of themselves

export const root = () => app.rootGraph ?? app.graph

/** Tell ComfyUI that the workflow has changed, for its undo and its draft. */
export function tellWorkflow() {
  const tracker = app.extensionManager?.workflow?.activeWorkflow?.changeTracker
  if (tracker?.captureCanvasState) tracker.captureCanvasState()
  else tracker?.checkState?.()
}

/** Send JSON to the server.
 *  @param {string} path
 *  @param {object} body */
export const post = (path, body) =>
  api.fetchApi(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body)
  })

/** Why the server refuses what it was asked.
 *  @param {Response | null} reply null where there was none
 *  @returns {Promise<string>} */
export const refusal = async (reply) =>
  (await reply?.json().catch(() => null))?.error ?? tr("The server does not answer.")

/** Call `heard` whenever the inbox changes, until the returned function is called.
 *  @param {() => void} heard */
export function listen(heard) {
  events.addEventListener("change", heard)
  return () => events.removeEventListener("change", heard)
}

/** Tell all that listen that there is something new to show. */
export const changed = () => events.dispatchEvent(new Event("change"))

/** The node that an execution id such as "4:7" names in the workflow on screen.
 *  @param {string} executionId
 *  @returns {HostNode | null} */
export function nodeOf(executionId) {
  const path = String(executionId).split(":")
  /** @type {HostGraph | undefined} */
  let graph = root()
  for (const id of path.slice(0, -1)) graph = graph?.getNodeById(id)?.subgraph
  return graph?.getNodeById(path.at(-1)) ?? null
}

/** The node of a locator, which kept outputs go by: "ID", or "SUBGRAPH:ID" inside one.
 *  @param {string} locator */
export function nodeAt(locator) {
  const [id, subgraph] = locator.split(":").reverse()
  return (subgraph ? root().subgraphs?.get(subgraph) : root())?.getNodeById(id)
}

/** The sets shown by a node of the workflow on screen, oldest first.
 *  @param {HostNode} node */
export function setsOf(node) {
  return [...sets.values()].filter((entry) => entry.workflow === root().id && nodeOf(entry.node) === node)
}

/** The sets that a run showed in any of its pickers.
 *  @param {string} prompt */
export function setsOfRun(prompt) {
  return [...sets.values()].filter((entry) => entry.prompt === prompt)
}

/** @param {Shown} told */
function receive({ prompt_id: prompt, node, workflow, waiting, sets: shown }) {
  if (!workflow) return // a run that no page queued belongs to no page
  for (const { set, candidates, images, text = "" } of shown) {
    const key = `${workflow} ${node} ${set}`
    if (sets.get(key)?.prompt !== prompt) sets.delete(key) // to the newest end
    sets.set(key, {
      set,
      candidates,
      images,
      text,
      workflow,
      node,
      prompt,
      waiting: waiting && !over.has(waitOf(prompt, node))
    })
  }
  for (const [key, entry] of sets) {
    if (sets.size <= MOST_SETS) break
    if (entry.prompt !== prompt && !entry.waiting) sets.delete(key)
  }
}

/** Ask the server what lacks picks. */
export async function refresh() {
  const before = heard
  const waited = [...sets.values()].filter((entry) => entry.waiting)
  const answer = await api.fetchApi("/d3po/pending").catch(() => null) // no server: the host says so itself
  if (!answer?.ok) return
  const pending = await answer.json()
  if (heard > before) return refresh() // this may be older than what runs have told meanwhile
  for (const entry of waited) entry.waiting = false
  for (const told of pending) receive(told)
  changed()
}

/** Hand picks to the node that waits for them. A run that no longer waits, or got others first, has no use
 *  for them; one that cannot keep them waits on.
 *  @param {Entry[]} waiting the sets of one node
 *  @param {Record<string, Judgement | undefined>} picks by set */
export async function answer(waiting, picks) {
  const [entry] = waiting
  for (const each of waiting) each.waiting = false
  const wait = waitOf(entry.prompt, entry.node)
  over.add(wait)
  try {
    const reply = await post("/d3po/answer", { prompt_id: entry.prompt, node: entry.node, picks })
    if (!reply.ok && ![404, 409].includes(reply.status)) throw new Error((await reply.json()).error)
  } catch (error) {
    over.delete(wait) // the next word from the server asks again
    for (const each of waiting) each.waiting = true
    throw error
  }
}

/** @param {Entry} entry */
export const cancel = (entry) => api.interrupt(entry.prompt)

/** Queue the run again that showed these sets, as it was but for the picks: all above the picker comes from
 *  the cache.
 *
 *  Where the server has forgotten the run, the workflow on screen is queued.
 *  @param {string} promptId
 */
export async function queueAgain(promptId) {
  const run = (await (await api.fetchApi(`/history/${encodeURIComponent(promptId)}`)).json())[promptId]
  if (!run) return app.queuePrompt(0, 1)
  /** @type {[unknown, unknown, Prompt, { extra_pnginfo?: { workflow?: SavedGraph } }]} */
  const [, , prompt, extra] = run.prompt
  const workflow = extra.extra_pnginfo?.workflow
  for (const [id, { class_type, inputs }] of Object.entries(prompt)) {
    const widgets = (PICKERS.includes(class_type) && nodeOf(id)?.widgets) || []
    const widget = widgets.find((w) => w.name === "picks")
    if (!widget) continue
    inputs.picks = widget.value
    const saved = workflow && savedNode(workflow, id)
    if (saved) saved.widgets_values[widgets.indexOf(widget)] = widget.value
  }
  return api.queuePrompt(0, { output: prompt, workflow })
}

/** @param {SavedGraph} workflow
 *  @param {string} executionId */
function savedNode(workflow, executionId) {
  const path = executionId.split(":")
  /** @type {SavedGraph | undefined} */
  let graph = workflow
  for (const id of path.slice(0, -1)) {
    /** @type {string | undefined} */
    const type = graph?.nodes.find((node) => String(node.id) === id)?.type
    graph = workflow.definitions?.subgraphs?.find((subgraph) => subgraph.id === type)
  }
  return graph?.nodes.find((node) => String(node.id) === path.at(-1))
}

/** Begin to listen to the server. */
export function connect() {
  api.addEventListener("d3po.waiting", ({ detail }) => {
    heard++
    receive(detail)
    changed()
  })
  api.addEventListener("d3po.closed", ({ detail }) => {
    over.add(waitOf(detail.prompt_id, detail.node))
    for (const entry of sets.values()) {
      if (entry.prompt === detail.prompt_id && entry.node === detail.node) entry.waiting = false
    }
    events.dispatchEvent(Object.assign(new Event("closed"), { detail }))
    changed()
  })
  api.addEventListener("executed", ({ detail }) => {
    const told = detail.output?.d3po
    if (!told || !nodeOf(detail.node)) return
    const workflow = told[0]?.workflow ?? null
    // Output from the cache may have been made for a copy of this workflow: then the server is asked at the
    // run's end.
    if (workflow && workflow !== root().id) return
    heard++
    receive({ prompt_id: detail.prompt_id, node: detail.node, workflow, waiting: false, sets: told })
    changed()
  })
  // The queue has changed, in whatever tab, or there is a connection again.
  api.addEventListener("reconnected", refresh)
  api.addEventListener("status", refresh)
}

/** Call `heard` when a wait has ended, until the returned function is called.
 *  @param {(closed: Closed) => void} heard */
export function listenClosed(heard) {
  /** @type {EventListener} */
  const hear = (event) => heard(/** @type {CustomEvent<Closed>} */ (event).detail)
  events.addEventListener("closed", hear)
  return () => events.removeEventListener("closed", hear)
}
