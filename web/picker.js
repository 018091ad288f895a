// The pair preference picker's widget: joins a node of the graph, its picks and its view.

import { app } from "../../scripts/app.js"
import {
  answer,
  cancel,
  connect,
  listen,
  listenClosed,
  nodeOf,
  queueAgain,
  refresh,
  root,
  setsOf,
  setsOfRun,
  tellWorkflow,
  WIN_RATE
} from "./inbox.js"
import { Picks } from "./picks.js"
import { leaveToCanvas } from "./place.js"
import { hasAnswered, wordsOfNext } from "./rounds.js"
import { hearing, tell } from "./told.js"
import { View } from "./view.js"
import { isEnough, resultOf } from "./win_rate.js"

/** @typedef {import("./inbox.js").Entry} Entry */
/** @typedef {import("./inbox.js").Closed} Closed */
/** @typedef {import("./judging.js").Mode} Mode */

/**
 * @typedef {object} Settings kept with the node
 * @property {Mode} mode how candidates are judged
 * @property {number} seed of which side each candidate is on
 * @property {boolean} same_place whether both images of a pair are in one place
 * @property {boolean} continue_when_done whether the last answer queues the run again
 * @property {boolean} next_round whether the workflow is queued once more after a run with the picks
 *
 * @typedef {object} Model what the view shows and changes
 * @property {Picks} picks
 * @property {() => Entry[]} sets the sets there are to judge, oldest first
 * @property {Settings} settings
 * @property {(finished: Entry | null) => void} changed picks or settings were changed; `finished` is the set
 *   that this answer completed
 * @property {(entry: Entry) => void} run continue with the picks there are
 * @property {() => void} cancel stop the run that waits
 * @property {boolean} blind whether nothing may tell one candidate from the other
 * @property {boolean} enough whether a blind session can end, though sets are left
 * @property {string} next what there is to say where no set is left, or ""
 * @property {string} empty what there is to say while there is no set
 * @property {boolean} goesOn whether a run goes on with the picks
 * @property {() => void} [closed] the expanded view was left
 */

/** @type {Settings} */
const SETTINGS = { mode: "pairs", seed: 0, same_place: false, continue_when_done: false, next_round: false }
const FIRST_SIZE = [680, 740]
const LEAST_HEIGHT = 320 // of the widget
const SETTLED = 150 // ms after the last answer until the workflow is told of it

const UNSAVED = "d3po.unsaved."
/** @type {Set<Widget>} */
const widgets = new Set()
/** By the element that ComfyUI places.
 *  @type {WeakMap<Element, Widget>} */
const owners = new WeakMap()

export class Widget {
  picks = new Picks(() => this.blind || hasAnswered())
  empty = "Press Run: the candidates will be shown here."
  goesOn = true
  /** @type {number | undefined} */
  #timer
  /** @type {(() => void)[]} */
  #silence = []
  /** The pairs of a blind session, once a run has told them: those of older runs are of another LoRA.
   *  @type {string[] | undefined} */
  #session

  /** @param {HostNode} node
   *  @param {string} name */
  constructor(node, name) {
    this.node = node
    for (const [key, value] of Object.entries(SETTINGS)) node.addProperty(key, value)
    /** Whether nothing may tell one candidate from the other: 0 is one side's, 1 the other's. */
    this.blind = isBlind(node)
    this.view = new View(this)
    this.view.panel.root.classList.toggle("d3po-blind", this.blind)
    this.widget = node.addDOMWidget(name, "D3PO_PICKER", this.view.place, {
      hideOnZoom: false,
      socketless: true, // a linked widget is not drawn, nor is this one where it is promoted onto a subgraph
      getMinHeight: () => LEAST_HEIGHT,
      getValue: () => this.picks.text,
      setValue: (text) => {
        if (text === this.picks.text) return
        this.picks.text = text
        this.view.reset()
      }
    })
    owners.set(this.view.place, this)
    leaveToCanvas(this.view.place)
    node.hideOutputImages = true // Nodes 2.0
    node.onDrawBackground = () => {} // the canvas renderer
    this.#follow()
  }

  /** Hear of new sets and changed properties as long as the node exists. */
  #follow() {
    const widget = this
    const { node } = this
    // ComfyUI does not tell a node inside a subgraph that its graph is gone.
    const heard = () => (this.#isGone ? this.#release() : this.#hear())
    this.#silence = [listen(heard), listenClosed((detail) => this.#learn(detail))]
    const { onRemoved, onPropertyChanged, onConfigure } = node
    widgets.add(this)
    node.onRemoved = function (...told) {
      onRemoved?.apply(this, told)
      widget.#release()
    }
    node.onPropertyChanged = function (...told) {
      const allowed = onPropertyChanged?.apply(this, told)
      queueMicrotask(() => widget.view.refresh())
      return allowed
    }
    node.onConfigure = function (...told) {
      onConfigure?.apply(this, told)
      widget.#takePlace()
      widget.view.refresh()
    }
    node.d3po = this
  }

  get #isGone() {
    const { graph } = this.node
    if (!widgets.has(this)) return true
    return graph !== null && graph !== root() && root().subgraphs?.get(graph.id) !== graph
  }

  /** In Nodes 2.0 an undo leaves the element of the node that is gone in its successor's place. */
  #takePlace() {
    if (!LiteGraph.vueNodesMode) return
    for (const place of document.querySelectorAll(".d3po-place")) {
      const other = owners.get(place)
      if (other?.node.id === this.node.id && other.#isGone) place.replaceWith(this.view.place)
    }
  }

  #release() {
    // Told now, ComfyUI would take what it has just restored for a change, and forget its redo.
    clearTimeout(this.#timer)
    for (const stop of this.#silence) stop()
    this.view.panel.close()
    widgets.delete(this)
  }

  #hear() {
    // A run may wait for what is judged already: another run asked for it first.
    for (const entry of this.sets()) if (entry.waiting && this.picks.finished(entry.set)) this.#finish(entry)
    this.view.refresh()
  }

  get settings() {
    return /** @type {Settings} */ (/** @type {unknown} */ (this.node.properties))
  }

  sets() {
    const sets = this.node.graph ? setsOf(this.node) : []
    return this.#session?.flatMap((name) => sets.find(({ set }) => set === name) ?? []) ?? sets
  }

  /** Whether a blind session can end, though sets are left. */
  get enough() {
    return isEnough(resultOf(this.#session?.map((set) => this.picks.of(set)) ?? []))
  }

  get next() {
    return this.settings.next_round && !this.blind ? wordsOfNext() : ""
  }

  /** Take a blind session's pairs and what it came to.
   *  @param {NodeOutput | undefined} output */
  hear(output) {
    if (!output?.d3po) return
    this.#session = output.d3po.map(({ set }) => set)
    this.view.panel.report(output.text?.join("\n") ?? "")
    this.view.refresh()
  }

  /** Take over the picks that another tab gave to a run that waited here.
   *  @param {Closed} closed */
  #learn({ prompt_id: prompt, node, picks }) {
    const here = this.sets().filter((entry) => entry.prompt === prompt && entry.node === node)
    const ours = new Set(here.map((entry) => entry.set))
    const missing = Object.entries(picks).filter(([set]) => ours.has(set) && !this.picks.finished(set))
    for (const [set, judgement] of missing) this.picks.put(set, judgement)
    if (!missing.length) return
    this.view.reset()
    this.changed(null)
  }

  /** @param {Entry | null} finished the set that has its picks now, if one has */
  changed(finished) {
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#settle(), SETTLED)
    if (finished) this.#finish(finished)
  }

  #settle() {
    clearTimeout(this.#timer)
    this.#timer = undefined
    tellWorkflow()
  }

  // ComfyUI keeps a draft of the workflow half a second after a change. A page that goes before that leaves
  // its newest picks in the browser's storage, for the page that opens the workflow next.

  get #storage() {
    return `${UNSAVED}${root().id} ${this.node.graph?.id} ${this.node.id}`
  }

  leave() {
    const recent = this.picks.recent
    if (Object.keys(recent).length) localStorage.setItem(this.#storage, JSON.stringify(recent))
  }

  takeUp() {
    const left = localStorage.getItem(this.#storage)
    if (!left) return
    localStorage.removeItem(this.#storage)
    for (const [set, judgement] of Object.entries(JSON.parse(left)))
      this.picks.put(set, judgement ?? undefined)
    this.view.reset()
    this.changed(null)
  }

  /** A set has its picks now: let its run go on once it has all of them.
   *  @param {Entry} entry */
  #finish(entry) {
    if (entry.waiting) {
      const waiting = setsOfRun(entry.prompt).filter((other) => other.node === entry.node && other.waiting)
      if (waiting.every((other) => this.picks.finished(other.set))) {
        const picks = Object.fromEntries(waiting.map((other) => [other.set, this.picks.of(other.set)]))
        this.#try(answer(waiting, picks))
      }
    } else if (this.settings.continue_when_done && this.#wholeRunJudged(entry)) {
      this.run(entry)
    }
  }

  /** @param {Entry} entry */
  #wholeRunJudged(entry) {
    return setsOfRun(entry.prompt).every((other) => nodeOf(other.node)?.d3po?.picks.finished(other.set))
  }

  /** Queue the run again that showed a set, or hand a run that waits the picks that it could not keep before.
   *  @param {Entry} entry */
  run(entry) {
    this.#settle()
    if (entry.waiting) return this.#finish(entry)
    this.#try(queueAgain(entry.prompt))
  }

  cancel() {
    const waiting = this.sets().find((entry) => entry.waiting)
    if (waiting) this.#try(cancel(waiting))
  }

  /** @param {Promise<unknown>} request */
  async #try(request) {
    try {
      await request
    } catch (thrown) {
      const error = /** @type {Error & { response?: Response }} */ (thrown)
      tell("D3PO picker", "error", error.response ? String(error) : error.message, 8)
      this.view.refresh()
    }
  }
}

/** @param {HostNode} node */
const isBlind = (node) => node.constructor.comfyClass === WIN_RATE

app.registerExtension({
  ...hearing(isBlind, (node, output) => node.d3po?.hear(output)),
  name: "D3PO.Picker",
  getCustomWidgets: () => ({
    D3PO_PICKER: (node, name) => ({
      widget: new Widget(node, name).widget,
      minWidth: FIRST_SIZE[0],
      minHeight: FIRST_SIZE[1]
    })
  }),
  async init() {
    document.head.append(
      Object.assign(document.createElement("link"), {
        rel: "stylesheet",
        href: new URL("picker.css", import.meta.url).href
      })
    )
  },
  async setup() {
    connect()
    window.addEventListener("pagehide", () => {
      for (const widget of widgets) widget.leave()
    })
    await refresh()
  },
  async afterConfigureGraph() {
    for (const widget of widgets) widget.takeUp()
    await refresh()
  }
})
