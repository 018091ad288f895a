// Judging a dataset's sets in the picker's own view, without a run. Sets that are recorded meanwhile join the
// end by themselves.

import { api } from "../../scripts/api.js"
import { refusal } from "./inbox.js"
import { tr } from "./language.js"
import { outboxOf } from "./outbox.js"
import { Picks } from "./picks.js"
import { View } from "./view.js"

/** @typedef {import("./inbox.js").Entry} Entry */
/** @typedef {import("./judgement.js").Judgement} Judgement */
/** @typedef {import("./outbox.js").Outbox} Outbox */
/** @typedef {import("./picker.js").Settings} Settings */

/**
 * @typedef {object} Said what counts of what a person said of a set
 * @property {string} annotator
 * @property {Judgement} judgement
 * @property {string} time
 *
 * @typedef {object} StoredSet a set as the server tells of it
 * @property {string} set
 * @property {number} candidates
 * @property {import("./stage.js").Reference[]} images of each candidate; none where one is gone
 * @property {string} text the prompt, where it is known
 * @property {string} created
 * @property {boolean} held_out
 * @property {Said[]} said
 *
 * @typedef {{ sets: StoredSet[], size: number }} Page size: of a whole page
 */

const FEW = 20 // sets to judge, below which more are fetched
const SETTINGS = "d3po.judging"
const IDLE = "d3po.idle" // a measure: from a set's last answer until the next set is on screen

/** The view that is open.
 *  @type {Judging | null} */
let live = null
let queued = 0 // runs

/** Ask the server. Throws an Error that says why there is no answer.
 *  @param {string} route
 *  @param {Record<string, string>} query */
export async function ask(route, query) {
  const reply = await api.fetchApi(`${route}?${new URLSearchParams(query)}`).catch(() => null)
  if (reply?.ok) return reply.json()
  throw new Error(await refusal(reply))
}

/** Picks of which each goes to an outbox. */
class Sent extends Picks {
  #outbox
  #settings

  /** @param {Outbox} outbox
   *  @param {Settings} settings */
  constructor(outbox, settings) {
    super(() => {})
    for (const [set, { judgement }] of Object.entries(outbox.held)) super.put(set, judgement ?? undefined)
    this.#outbox = outbox
    this.#settings = settings
  }

  /** @param {string} set
   *  @param {Judgement | undefined} judgement */
  put(set, judgement) {
    const back = this.finished(set)
    super.put(set, judgement)
    this.#outbox.put(set, { judgement: judgement ?? null, mode: this.#settings.mode, back })
  }
}

/** What the picker's view shows of a dataset, as its Model. */
export class Judging {
  blind = false
  enough = false
  goesOn = false
  /** @type {Settings} */
  settings = {
    mode: "pairs",
    seed: 0,
    same_place: false,
    ...JSON.parse(localStorage.getItem(SETTINGS) ?? "{}"),
    continue_when_done: false,
    next_round: false
  }
  /** @type {Entry[]} */
  #entries = []
  #batch = 0
  /** When the newest set was finished, while no other has been shown since; ms.
   *  @type {number | null} */
  #since = null
  #filled = Promise.resolve()

  /** @param {string} dataset
   *  @param {string} annotator
   *  @param {() => void} closed called when the view is left
   *  @param {StoredSet | null} only the one set that is judged again; null for all that are not judged */
  constructor(dataset, annotator, closed, only = null) {
    this.dataset = dataset
    this.annotator = annotator
    this.whenClosed = closed
    this.only = only
    this.outbox = outboxOf(dataset, annotator)
    this.outbox.heard = () => this.#report()
    this.picks = new Sent(this.outbox, this.settings)
    if (only) this.#add([only])
  }

  /** Show the view, once there is something to show. */
  async open() {
    if (!this.only) await this.#fill()
    queued = (await ask("/prompt", {}).catch(() => null))?.exec_info.queue_remaining ?? queued
    this.view = new View(this)
    this.view.panel.root.classList.add("d3po-dataset")
    live?.close()
    live = this
    this.#report()
    this.view.panel.expand()
  }

  close() {
    this.view?.panel.close()
  }

  closed() {
    if (live === this) live = null
    this.outbox.heard = () => {}
    this.whenClosed()
  }

  sets() {
    return this.#entries
  }

  get #open() {
    return this.#entries.filter(({ set }) => !this.picks.finished(set)).length
  }

  get next() {
    if (this.only) return tr("Close this view to go back to the list.")
    if (!queued) return tr("All judged. Queue more runs: what they record comes here by itself.")
    return queued === 1
      ? tr("All judged. 1 run is queued; what it records comes here by itself.")
      : tr("All judged. {n} runs are queued; what they record comes here by itself.", { n: queued })
  }

  get empty() {
    return this.next
  }

  /** @param {Entry | null} finished */
  changed(finished) {
    const { mode, same_place } = this.settings
    localStorage.setItem(SETTINGS, JSON.stringify({ mode, same_place }))
    if (!finished) return
    this.#since = performance.now()
    this.#measure()
    this.fill()
  }

  run() {}

  cancel() {}

  /** Fetch more sets where few are left, and show them. */
  fill() {
    if (this.only) return
    this.#filled = this.#filled
      .then(() => this.#fill())
      .then((came) => {
        if (!came) return
        this.view?.refresh()
        this.#measure()
      })
      .catch(() => {}) // asked again when the server is back
  }

  /** Whether there are more sets now. */
  async #fill() {
    const { dataset, annotator } = this
    const before = this.#entries.length
    const query = { dataset, annotator, filter: "unjudged", order: "oldest" }
    for (let page = 0; this.#open < FEW; page++) {
      const told = /** @type {Page} */ (await ask("/d3po/datasets/sets", { ...query, page: String(page) }))
      this.#add(told.sets)
      if (told.sets.length < told.size) break
    }
    return this.#entries.length > before
  }

  /** @param {StoredSet[]} told */
  #add(told) {
    const known = new Set(this.#entries.map(({ set }) => set))
    const fresh = told.filter(({ set, images }) => images.length && !known.has(set))
    if (!this.#open) this.#batch++ // what comes where nothing is left is shown at once, as a new run's is
    for (const { set, candidates, images, text } of fresh) {
      const shown = { set, candidates, images, text, workflow: "", node: "", waiting: false }
      this.#entries.push({ ...shown, prompt: String(this.#batch) })
    }
  }

  /** Note how long nobody could judge, once the next set is on screen. */
  async #measure() {
    const { view } = this
    await view?.drawn
    await new Promise(requestAnimationFrame)
    if (this.#since === null || ["done", "empty"].includes(view?.panel.root.dataset.kind ?? "empty")) return
    performance.measure(IDLE, { start: this.#since })
    this.#since = null
  }

  #report() {
    const why = this.outbox.problem
    this.view?.panel.report(
      why && tr("Not saved yet: {why} It is kept in this browser, and tried again.", { why })
    )
  }

  /** Say what there is to say of the queue now. */
  sayQueue() {
    if (!this.#open) this.view?.refresh()
  }
}

/** Begin to listen to the server. */
export function connect() {
  api.addEventListener("d3po.kept", ({ detail }) => {
    if (detail.dataset === live?.dataset) live?.fill()
  })
  api.addEventListener("reconnected", () => live?.fill())
  api.addEventListener("status", ({ detail }) => {
    queued = detail?.exec_info?.queue_remaining ?? queued
    live?.sayQueue()
  })
}
