// How a train step learns, while it does: where it is, its curves, what pictures become, and a button that
// ends it.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { button } from "./answers.js"
import { BeforeAfter } from "./before_after.js"
import { nodeOf, post, refusal, root } from "./inbox.js"
import { tr } from "./language.js"
import { leaveToCanvas } from "./place.js"
import { h } from "./stage.js"
import { hearing, tell } from "./told.js"

/**
 * @typedef {object} Learning what the server tells of a train step
 * @property {string} prompt_id
 * @property {string} node an execution id
 * @property {string | null} workflow
 * @property {"learning" | "looking" | "done"} stage
 * @property {string} words where it is
 * @property {Record<string, (number | null)[]>} curves
 * @property {import("./before_after.js").Pictures | null} pictures
 */

const NAME = "learning"
const LEARNERS = ["D3POTrainStep", "D3PORewardTrainStep"]
const TITLES = /** @type {Record<string, string>} */ ({
  "implicit accuracy": "agrees with picks",
  "held-out accuracy": "with held-out picks",
  "score gain": "score gained",
  "second score gain": "second score gained",
  "KL to reference": "KL to base",
  "share of the leash": "of its leash used"
})
const SHARES = ["implicit accuracy", "held-out accuracy", "share of the leash"] // drawn from 0 to 1
const [WIDTH, HEIGHT] = [100, 32] // of a curve, in units of its own
const HEAD = 60 // pixels of the widget without curves
const ROW = 78 // of two curves side by side

/** By the node that learns.
 *  @type {WeakMap<HostNode, Curves>} */
const shown = new WeakMap()

/** @param {number} value */
const short = (value) => String(Number(value.toPrecision(3)))

/** A curve as SVG has it, straight on where values are missing.
 *  @param {(number | null)[]} values
 *  @param {number} low
 *  @param {number} high */
function path(values, low, high) {
  const step = WIDTH / Math.max(1, values.length - 1)
  const span = high - low || 1
  let pen = "M"
  return values
    .flatMap((value, i) => {
      if (value === null) return []
      const point = `${pen}${(i * step).toFixed(1)} ${((1 - (value - low) / span) * HEIGHT).toFixed(1)}`
      pen = "L"
      return [point]
    })
    .join("")
}

/** One metric: its title, its last value and its curve.
 *  @param {string} name
 *  @param {(number | null)[]} values */
function curve(name, values) {
  const known = values.filter((value) => value !== null)
  const [low, high] = SHARES.includes(name) ? [0, 1] : [Math.min(0, ...known), Math.max(...known)]
  const last = known[known.length - 1]
  const title = tr(TITLES[name] ?? name)
  return h(
    "figure",
    { "data-metric": name, "aria-label": `${title}: ${short(last)}` },
    h("figcaption", { textContent: title }),
    h("output", { textContent: SHARES.includes(name) ? `${Math.round(100 * last)}%` : short(last) }),
    h("span", {
      "aria-hidden": "true",
      innerHTML: `<svg viewBox="-1 -2 ${WIDTH + 2} ${HEIGHT + 4}" preserveAspectRatio="none"><path
        d="${path(values, low, high)}" fill="none" stroke="currentColor" stroke-width="1.5"
        vector-effect="non-scaling-stroke"/></svg>`
    })
  )
}

class Curves {
  /** @type {Learning | null} */
  #told = null

  constructor() {
    this.words = h("span", { class: "d3po-count", role: "status" })
    this.enough = button("enough", "", "stop and keep", () => this.#end())
    this.enough.title = tr("End training after this update, and keep what was learned")
    const space = h("span", { class: "d3po-space" })
    this.head = h("div", { class: "d3po-head", hidden: true }, this.words, space, this.enough)
    this.curves = h("div", { class: "d3po-curves" })
    this.pictures = new BeforeAfter()
    this.element = h(
      "div",
      { class: "d3po-root d3po-learning" },
      this.head,
      this.curves,
      this.pictures.element
    )
    leaveToCanvas(this.element)
  }

  get height() {
    return HEAD + this.#heightOfCurves + this.pictures.height
  }

  get #heightOfCurves() {
    return ROW * Math.ceil(this.curves.childElementCount / 2)
  }

  /** @param {Learning} told */
  take(told) {
    if (told.prompt_id !== this.#told?.prompt_id) this.enough.disabled = false
    this.#told = told
    this.head.hidden = false
    this.words.textContent = told.words
    this.enough.hidden = told.stage !== "learning"
    this.curves.replaceChildren(...Object.entries(told.curves).map(([name, values]) => curve(name, values)))
    this.curves.style.flexBasis = `${this.#heightOfCurves}px`
    this.pictures.take(told.pictures)
  }

  async #end() {
    if (!this.#told) return
    this.enough.disabled = true
    const { prompt_id, node } = this.#told
    const reply = await post("/d3po/enough", { prompt_id, node }).catch(() => null)
    if (reply?.ok || reply?.status === 404) return // it has ended by itself
    this.enough.disabled = false
    tell("D3PO", "warn", await refusal(reply))
  }
}

/** A node's curves, made when it first learns. They are not saved.
 *  @param {HostNode} node */
function curvesOf(node) {
  const there = shown.get(node)
  if (there) return there
  const curves = new Curves()
  const widget = node.addDOMWidget(NAME, "D3PO_LEARNING", curves.element, {
    hideOnZoom: false,
    serialize: false,
    getMinHeight: () => curves.height
  })
  widget.serialize = false
  shown.set(node, curves)
  return curves
}

/** @param {HostNode} node */
const isLearner = (node) => LEARNERS.includes(node.constructor.comfyClass ?? "")

/** @param {Learning} told */
function hear(told) {
  if (told.workflow && told.workflow !== root().id) return
  const node = nodeOf(told.node)
  if (!node || !isLearner(node)) return
  curvesOf(node).take(told)
  fit(node)
}

/** Show the pictures that a run has ended with, also where the page did not see it learn.
 *  @param {HostNode} node
 *  @param {NodeOutput | undefined} output */
function remember(node, output) {
  const pictures = output?.pictures?.[0] ?? null
  if (!pictures && !shown.has(node)) return
  curvesOf(node).pictures.take(pictures)
  fit(node)
}

/** Let a node be as high as what it shows.
 *  @param {HostNode} node */
function fit(node) {
  const [width, height] = node.size
  const least = node.computeSize()[1]
  if (height < least) node.setSize([width, least]) // not at each update, as all is laid out anew
  node.setDirtyCanvas(true, true)
}

app.registerExtension({
  ...hearing(isLearner, remember),
  name: "D3PO.Learning",
  setup() {
    api.addEventListener("d3po.learning", ({ detail }) => hear(detail))
  }
})
