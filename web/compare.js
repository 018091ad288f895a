// Two sides' pictures in pairs: side by side, under a slider, in the same place, or their difference.

import { app } from "../../scripts/app.js"
import { button } from "./answers.js"
import { tr } from "./language.js"
import { act, held, leaveToCanvas, listOf, Place } from "./place.js"
import { h, Stage } from "./stage.js"
import { hearing } from "./told.js"

/** @typedef {import("./stage.js").Reference} Reference */
/** @typedef {[a: Reference, b: Reference]} Pair */
/** @typedef {"side" | "line" | "same" | "difference"} ViewName */

/** @type {Record<ViewName, string>} */
const VIEWS = { side: "side by side", line: "slider", same: "same place", difference: "difference" }
const NAMES = /** @type {ViewName[]} */ (Object.keys(VIEWS))
/** @typedef {{ label: string, property: string, min: number, max: number, first: number }} Slider */
/** What the slider at the bottom sets in a view, with its bounds and its first value.
 *  @type {{ [view in ViewName]?: Slider }} */
const SLIDERS = {
  line: { label: "Line between the sides", property: "--d3po-split", min: 0, max: 1, first: 0.5 },
  difference: { label: "Brightness of the difference", property: "--d3po-gain", min: 1, max: 16, first: 4 }
}
/** @type {[key: string, what: string][]} */
const KEYS = [
  ...NAMES.map((name, i) => /** @type {[string, string]} */ ([String(i + 1), VIEWS[name]])),
  ["F", "hold: the other side"],
  ["← and →", "previous, next pair"],
  ["click", "one pair alone, or all"],
  ["+ − 0", "zoom in, out, whole pictures"],
  ["E", "expand"],
  ["?", "these keys"]
]
const EMPTY = "Press Run: the pictures will be shown here."
const GONE = "These pictures are gone from the server. Run again to see them."
const FIRST_SIZE = [560, 620]
const LEAST_HEIGHT = 320 // of the widget
const MOST_NAMED = 9 // pairs whose pictures have a badge each

/** By the element that ComfyUI places.
 *  @type {WeakMap<Element, Comparison>} */
const owners = new WeakMap()
/** @type {WeakMap<HostNode, Comparison>} */
const comparisons = new WeakMap()

class Comparison {
  /** @type {Pair[]} */
  #pairs = []
  /** What the sides are called.
   *  @type {string[]} */
  #names = ["", ""]
  /** The pair that is shown alone.
   *  @type {number | null} */
  #alone = null
  #flipped = false
  /** @type {Record<string, number>} */
  #slid = {}

  /** @param {HostNode} node */
  constructor(node) {
    this.node = node
    node.addProperty("view", "side")
    this.stage = new Stage((pane) => this.#pick(pane))
    this.stage.element.addEventListener("pointermove", (event) => this.#follow(event))
    this.help = h("div", { class: "d3po-help", hidden: true }, listOf(KEYS))
    this.message = h("div", { class: "d3po-message" })
    this.count = h("span", { class: "d3po-count" })
    this.slider = h("input", {
      type: "range",
      class: "d3po-slider",
      step: "any",
      oninput: () => this.#slide(Number(this.slider.value))
    })
    this.views = NAMES.map((name, i) => button(name, String(i + 1), VIEWS[name], () => this.#look(name)))
    this.previous = button("previous", "ArrowLeft", "‹", () => this.#step(-1))
    this.next = button("next", "ArrowRight", "›", () => this.#step(1))
    this.all = button("all", "", "all pairs", () => this.#show(null))
    this.root = this.#root()
    this.place = new Place(this.root, "Compare, expanded")
    for (const { property, first } of Object.values(SLIDERS)) this.#set(property, first)
    leaveToCanvas(this.place.element)
    owners.set(this.place.element, this)
    this.#draw(false)
  }

  #root() {
    return h(
      "div",
      {
        class: "d3po-root d3po-compare",
        tabIndex: 0,
        role: "group",
        "aria-label": "Compare",
        title: "",
        "data-capture-wheel": "true",
        onkeydown: (event) => act(event, (pressed) => this.#actOf(pressed)),
        onkeyup: (event) => this.#keyUp(event)
      },
      h(
        "div",
        { class: "d3po-head" },
        ...this.views,
        h("span", { class: "d3po-space" }),
        button("expand", "E", "expand", () => this.place.expand()),
        button("keys", "?", "keys", () => this.#toggleKeys())
      ),
      this.help,
      this.message,
      this.stage.element,
      h(
        "div",
        { class: "d3po-foot" },
        held(
          button("flip", "F", "hold to flip", () => {}),
          (on) => this.#flip(on)
        ),
        this.slider,
        h("span", { class: "d3po-space" }),
        this.count,
        this.previous,
        this.next,
        this.all
      )
    )
  }

  /** Show what a run gave.
   *  @param {Pair[]} pairs
   *  @param {string[]} names */
  take(pairs, names) {
    if (JSON.stringify([pairs, names]) === JSON.stringify([this.#pairs, this.#names])) return
    const kept = pairs.length === this.#pairs.length // the same pictures of a LoRA that has learned more
    this.#pairs = pairs
    this.#names = names
    if (!kept) this.#alone = null
    this.#draw(kept)
  }

  /** Draw again, as the node's properties may be others now; and be where the node of the same number was
   *  that is gone: in Nodes 2.0 an undo leaves its element. */
  settle() {
    this.#draw(true)
    if (!LiteGraph.vueNodesMode) return
    for (const element of document.querySelectorAll(".d3po-place")) {
      const other = owners.get(element)
      if (other && other !== this && other.node.id === this.node.id) element.replaceWith(this.place.element)
    }
  }

  get #view() {
    const name = /** @type {ViewName} */ (this.node.properties.view)
    return name in VIEWS ? name : "side"
  }

  /** @param {boolean} kept whether zoom and place are */
  async #draw(kept) {
    const view = this.#view
    const shown = this.#alone === null ? this.#pairs.map((_, i) => i) : [this.#alone]
    const apart = view === "side" && !this.#flipped
    this.stage.element.dataset.view = this.#flipped ? "other" : view
    this.#drawControls()
    if (!shown.length) return
    const references = shown.map((pair) => this.#pairs[pair])
    const labels = shown.flatMap((pair) => this.#labels(pair, apart))
    const columns = 2 * Math.max(1, Math.round(Math.sqrt(0.6 * shown.length)))
    const focused = this.root.contains(document.activeElement)
    try {
      if (apart) await this.stage.show(references.flat(), labels, kept, columns)
      else await this.stage.show(references, labels, kept)
    } catch {
      this.#tell(GONE)
    }
    if (focused) this.place.holdFocus()
  }

  /** @param {number} pair
   *  @param {boolean} apart whether each side has a pane
   *  @returns {import("./stage.js").Label[]} */
  #labels(pair, apart) {
    const sides = apart ? this.#names : [this.#both]
    const named = this.#alone !== null || this.#pairs.length <= MOST_NAMED
    const pairOf = tr("Pair {n}", { n: pair + 1 })
    const what = tr(this.#alone === null ? "look at it alone" : "look at all")
    return sides.map((side) => ({ badge: named ? side : "", text: `${pairOf}, ${side}: ${what}` }))
  }

  /** What a pane that holds both sides is called. */
  get #both() {
    const [a, b] = this.#names
    if (this.#flipped) return a
    if (this.#view === "line") return `${a} | ${b}`
    return this.#view === "difference" ? tr(VIEWS.difference) : b
  }

  #drawControls() {
    const count = this.#pairs.length
    this.#tell(count ? "" : EMPTY)
    this.views.forEach((each, i) => {
      each.setAttribute("aria-pressed", String(NAMES[i] === this.#view))
    })
    const slider = SLIDERS[this.#view]
    this.slider.hidden = !slider
    if (slider) {
      const { min, max, label } = slider
      this.slider.setAttribute("aria-label", tr(label))
      Object.assign(this.slider, { min: String(min), max: String(max), title: tr(label) })
      this.slider.value = String(this.#slid[slider.property])
    }
    const one = this.#alone === null ? null : this.#alone + 1
    const all = count === 1 ? "1 pair" : "{count} pairs"
    this.count.textContent = one ? tr("{n} of {count}", { n: one, count }) : tr(all, { count })
    this.previous.disabled = this.next.disabled = count < 2
    this.all.disabled = this.#alone === null
  }

  /** @param {string} text */
  #tell(text) {
    this.message.hidden = !text
    this.message.textContent = tr(text)
  }

  /** @param {ViewName} name */
  #look(name) {
    this.node.properties.view = name
    this.#draw(true)
  }

  /** @param {boolean} on */
  #flip(on) {
    if (on === this.#flipped) return
    this.#flipped = on
    this.#draw(true)
  }

  /** @param {number} pane */
  #pick(pane) {
    const pair = this.#view === "side" && !this.#flipped ? Math.floor(pane / 2) : pane
    this.#show(this.#alone === null && this.#pairs.length > 1 ? pair : null)
  }

  /** @param {number | null} pair alone, or all of them */
  #show(pair) {
    this.#alone = pair
    this.#draw(true)
  }

  /** @param {number} by among the pairs */
  #step(by) {
    const count = this.#pairs.length
    if (count < 2) return
    this.#show(this.#alone === null ? (by > 0 ? 0 : count - 1) : (this.#alone + by + count) % count)
  }

  /** @param {number} value of the view's slider */
  #slide(value) {
    const slider = SLIDERS[this.#view]
    if (slider) this.#set(slider.property, Math.min(Math.max(value, slider.min), slider.max))
  }

  /** @param {string} property
   *  @param {number} value */
  #set(property, value) {
    this.#slid[property] = value
    this.stage.element.style.setProperty(property, String(value))
  }

  /** The line between the sides is where the mouse is, or the first finger.
   *  @param {PointerEvent} event */
  #follow({ clientX: x, clientY: y, isPrimary }) {
    if (this.#view !== "line" || this.#flipped || !isPrimary) return
    const boxes = [...this.stage.element.children].map((pane) => pane.getBoundingClientRect())
    const box = boxes.find((b) => x >= b.left && x <= b.right && y >= b.top && y <= b.bottom)
    if (!box) return
    this.#slide((x - box.left) / box.width)
    this.slider.value = String(this.#slid["--d3po-split"])
  }

  /** What a key does now.
   *  @param {KeyboardEvent} event */
  #actOf({ key }) {
    /** @type {Record<string, () => void>} */
    const keys = {
      f: () => this.#flip(true),
      e: () => this.place.expand(),
      "?": () => this.#toggleKeys(),
      ArrowLeft: () => this.#step(-1),
      ArrowRight: () => this.#step(1),
      "+": () => this.stage.zoom(1.25),
      "-": () => this.stage.zoom(0.8),
      0: () => this.stage.reset()
    }
    NAMES.forEach((name, i) => {
      keys[i + 1] = () => this.#look(name)
    })
    return keys[key.length === 1 ? key.toLowerCase() : key] ?? null
  }

  /** @param {KeyboardEvent} event */
  #keyUp(event) {
    if (event.key.toLowerCase() === "f") this.#flip(false)
    event.stopPropagation()
  }

  #toggleKeys() {
    this.help.hidden = !this.help.hidden
  }
}

/** @param {HostNode} node */
const isCompare = (node) => node.constructor.comfyClass === "D3POCompare"

/** @param {HostNode} node
 *  @param {NodeOutput | undefined} output */
function hear(node, output) {
  if (output?.compared) comparisons.get(node)?.take(output.compared, output.names ?? [])
}

const heard = hearing(isCompare, hear)

/** @param {HostNode} node */
function place(node) {
  const comparison = new Comparison(node)
  comparisons.set(node, comparison)
  const widget = node.addDOMWidget("compare", "D3PO_COMPARE", comparison.place.element, {
    hideOnZoom: false,
    serialize: false,
    getMinHeight: () => LEAST_HEIGHT
  })
  widget.serialize = false
  node.setSize([Math.max(node.size[0], FIRST_SIZE[0]), Math.max(node.size[1], FIRST_SIZE[1])])
  const { onConfigure, onRemoved, onPropertyChanged } = node
  node.onConfigure = function (...told) {
    onConfigure?.apply(this, told)
    comparison.settle()
  }
  node.onPropertyChanged = function (...told) {
    const allowed = onPropertyChanged?.apply(this, told)
    queueMicrotask(() => comparison.settle())
    return allowed
  }
  node.onRemoved = function (...told) {
    onRemoved?.apply(this, told)
    comparison.place.close()
  }
}

app.registerExtension({
  ...heard,
  name: "D3PO.Compare",
  nodeCreated(node) {
    heard.nodeCreated(node)
    if (isCompare(node)) place(node)
  }
})
