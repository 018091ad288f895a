// Pictures on a train step, in pairs: the same noise by the base model and by the LoRA as it is now.

import { button } from "./answers.js"
import { tr } from "./language.js"
import { act, held } from "./place.js"
import { h, Stage } from "./stage.js"

/** @typedef {import("./stage.js").Reference} Reference */
/** @typedef {import("./stage.js").Label} Label */

/**
 * @typedef {object} Pictures
 * @property {Reference[]} before
 * @property {Reference[]} now as many, or none while nothing has been learned
 * @property {string[]} prompts of each pair, "" where it is not known
 */

const PAIRS = 2 // in a row
const ROW = 105 // pixels
const GONE = "These pictures are gone from the server. Run again to see them."

/** The pairs side by side. A click on one shows it alone, before and now in the same place. */
export class BeforeAfter {
  /** @type {Pictures | null} */
  #pictures = null
  /** The pair that is shown alone.
   *  @type {number | null} */
  #alone = null
  #flipped = false

  constructor() {
    this.stage = new Stage((pane) => this.#pick(pane))
    this.message = h("div", { class: "d3po-message", hidden: true, textContent: GONE })
    const flip = held(
      button("flip", "F", "hold to flip", () => {}),
      (on) => this.#flip(on)
    )
    this.foot = h(
      "div",
      { class: "d3po-foot", hidden: true },
      flip,
      h("span", { class: "d3po-space" }),
      button("all", "", "all pairs", () => this.#show(null))
    )
    this.element = h(
      "div",
      {
        class: "d3po-pictures",
        role: "group",
        "aria-label": "Pictures before and now",
        "data-capture-wheel": "true",
        hidden: true,
        onkeydown: (event) => act(event, ({ key }) => (this.#flips(key) ? () => this.#flip(true) : null)),
        onkeyup: ({ key }) => this.#flips(key) && this.#flip(false)
      },
      this.message,
      this.stage.element,
      this.foot
    )
  }

  /** The least that the pictures take, in pixels. */
  get height() {
    return this.#pictures ? ROW * Math.ceil(this.#pictures.before.length / PAIRS) : 0
  }

  /** Show what a run tells, or nothing.
   *  @param {Pictures | null} pictures */
  take(pictures) {
    if (JSON.stringify(pictures) === JSON.stringify(this.#pictures)) return
    const kept = pictures?.before.length === this.#pictures?.before.length
    this.#pictures = pictures
    if (!kept || !pictures?.now.length) this.#alone = null
    this.element.hidden = !pictures
    this.element.style.flexBasis = `${this.height}px`
    if (pictures) this.#draw(kept)
    else this.stage.clear()
  }

  /** What the stage's panes hold. */
  get #view() {
    if (this.#alone !== null) return this.#flipped ? "other" : "same"
    return this.#pictures?.now.length ? "side" : "same"
  }

  /** @param {boolean} kept whether zoom and place are */
  async #draw(kept) {
    const { before, now } = /** @type {Pictures} */ (this.#pictures)
    const focused = this.element.contains(document.activeElement)
    const alone = this.#alone
    this.foot.hidden = alone === null
    this.message.hidden = true
    this.stage.element.dataset.view = this.#view
    try {
      if (alone !== null) await this.stage.show([[before[alone], now[alone]]], [this.#both(alone)], kept)
      else await this.#drawAll(before, now, kept)
    } catch {
      this.message.hidden = false
    }
    if (focused && document.activeElement === document.body) this.stage.focus(0) // keys go on
  }

  /** @param {Reference[]} before
   *  @param {Reference[]} now
   *  @param {boolean} kept */
  #drawAll(before, now, kept) {
    const sides = now.length ? [before, now] : [before]
    const names = [tr("before"), tr("now")]
    const what = now.length ? "look at it alone" : ""
    const labels = before.flatMap((_, pair) => sides.map((_, i) => this.#label(pair, names[i], what)))
    const references = before.flatMap((_, pair) => sides.map((side) => side[pair]))
    return this.stage.show(references, labels, kept, PAIRS * sides.length)
  }

  /** @param {number} pair that is shown alone */
  #both(pair) {
    return this.#label(pair, tr(this.#flipped ? "before" : "now"), "look at all")
  }

  /** @param {number} pair
   *  @param {string} side
   *  @param {string} what a click does
   *  @returns {Label} */
  #label(pair, side, what) {
    const prompt = this.#pictures?.prompts[pair]
    const text = `${prompt || tr("Pair {n}", { n: pair + 1 })}, ${side}`
    return { badge: side, text: what ? `${text}: ${tr(what)}` : text, title: prompt }
  }

  /** @param {number} pane */
  #pick(pane) {
    if (!this.#pictures?.now.length) return
    this.#show(this.#alone === null ? Math.floor(pane / 2) : null)
  }

  /** @param {number | null} pair alone, or all of them */
  #show(pair) {
    this.#alone = pair
    this.#draw(true)
  }

  /** @param {string} key */
  #flips(key) {
    return this.#alone !== null && key.toLowerCase() === "f"
  }

  /** @param {boolean} on whether what was before is shown in the place of what is now */
  #flip(on) {
    if (on === this.#flipped) return
    this.#flipped = on
    if (this.#alone !== null) this.#draw(true)
  }
}
