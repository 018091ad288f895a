// Images side by side or in the same place, zoomed and moved together.

import { api } from "../../scripts/api.js"
import { tr } from "./language.js"

const LARGEST_ZOOM = 16
const STILL = 5 // pixels a press may wander and still be a click
const KEPT = 96 // images
const SAID = ["title", "textContent", "aria-label"] // properties that are words

/** @typedef {{ filename: string, subfolder: string, type: string }} Reference an image on the server */
/** What a pane shows, what it is called and what is said of it beside the mouse.
 *  @typedef {{ badge: string | Element, text: string, title?: string }} Label */
/** @typedef {{ image: HTMLImageElement, done: boolean, ready: Promise<void> }} Picture */

/** @typedef {HTMLElementEventMap} Events */
/** @typedef {{ [Name in keyof Events as `on${Name}`]?: (event: Events[Name]) => void }} Listeners */
/** @typedef {Listeners & { [name: string]: unknown }} Properties */

/** A DOM element. Properties that begin with "on" are listeners; "class", "role" and names with a hyphen are
 *  attributes. Words are put into the page's language.
 *  @template {keyof HTMLElementTagNameMap} Tag
 *  @param {Tag} tag
 *  @param {Properties} properties
 *  @param {(string | Node)[]} children
 *  @returns {HTMLElementTagNameMap[Tag]} */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag)
  for (const [name, given] of Object.entries(properties)) {
    const value = SAID.includes(name) ? tr(String(given)) : given
    if (name.startsWith("on")) element.addEventListener(name.slice(2), /** @type {EventListener} */ (value))
    else if (name === "class" || name === "role" || name.includes("-"))
      element.setAttribute(name, String(value))
    else Object.assign(element, { [name]: value })
  }
  element.append(...children.map((child) => (typeof child === "string" ? tr(child) : child)))
  return element
}

/** The one descendant that a selector names.
 *  @param {Element} element
 *  @param {string} selector */
export const find = (element, selector) => /** @type {HTMLElement} */ (element.querySelector(selector))

/** @param {Reference} image */
export const address = (image) => api.apiURL(`/view?${new URLSearchParams(image)}`)

/** Decoded images by address, the most recently wanted ones.
 *  @type {Map<string, Picture>} */
const pictures = new Map()

/** @param {string} url
 *  @returns {Picture} */
function load(url) {
  const image = h("img", { src: url, alt: "", draggable: false, decoding: "sync" })
  const ready = image.decode().then(
    () => {
      entry.done = true
    },
    () => {
      pictures.delete(url)
      throw new Error("gone")
    }
  )
  ready.catch(() => {})
  const entry = { image, done: false, ready }
  return entry
}

/** An <img> and a promise that it can be drawn at once.
 *  @param {Reference} reference
 *  @returns {Picture} */
export function picture(reference) {
  const url = address(reference)
  const entry = pictures.get(url) ?? load(url)
  pictures.delete(url)
  pictures.set(url, entry)
  for (const old of pictures.keys()) {
    if (pictures.size <= KEPT) break
    pictures.delete(old)
  }
  return entry
}

/** Panes of images that zoom and move as one. A click on a pane calls `picked(index)`. */
export class Stage {
  /** @type {HTMLButtonElement[]} */
  #panes = []
  #zoom = { scale: 1, x: 0, y: 0 } // x and y in parts of a pane
  /** @type {Map<number, { x: number, y: number }>} */
  #pointers = new Map()
  #wandered = 0
  #shown = 0

  /** @param {(index: number) => void} picked */
  constructor(picked) {
    this.picked = picked
    this.element = h("div", {
      class: "d3po-stage",
      onwheel: (event) => this.#wheel(event),
      onpointerdown: (event) => this.#press(event),
      onpointermove: (event) => this.#move(event),
      onpointerup: (event) => this.#release(event),
      onpointercancel: (event) => this.#release(event),
      onclick: (event) => this.#click(event)
    })
  }

  /** Show images in panes; resolves once all are drawn, true unless it was overtaken. Rejects if one is gone.
   *  @param {(Reference | Reference[])[]} references of each pane one, or several that lie on each other
   *  @param {Label[]} labels
   *  @param {boolean} kept whether zoom and place are
   *  @param {number} columns */
  async show(references, labels, kept, columns = columnsOf(references.length)) {
    const turn = ++this.#shown
    if (!kept) this.reset()
    while (this.#panes.length < references.length) this.#addPane()
    for (const pane of this.#panes.splice(references.length)) pane.remove()
    const entries = references.map((layers) => [layers].flat().map(picture))
    this.element.classList.toggle("d3po-grid", references.length > 2)
    this.element.style.setProperty("--d3po-columns", String(columns))
    this.#panes.forEach((pane, i) => {
      find(pane, ".d3po-badge").replaceChildren(labels[i].badge)
      pane.setAttribute("aria-label", labels[i].text)
      pane.title = labels[i].title ?? ""
    })
    const late = entries.flat().filter((entry) => !entry.done)
    if (late.length) {
      this.element.classList.add("d3po-loading")
      await Promise.all(late.map((entry) => entry.ready))
      if (turn !== this.#shown) return false
    }
    this.element.classList.remove("d3po-loading")
    this.#panes.forEach((pane, i) => {
      const frames = entries[i].map(({ image }) => h("span", { class: "d3po-frame" }, image))
      const layers = frames.map((frame) => h("span", { class: "d3po-layer" }, frame))
      find(pane, ".d3po-layers").replaceChildren(...layers)
    })
    this.#draw()
    return true
  }

  clear() {
    this.#shown++
    this.element.classList.remove("d3po-loading")
    for (const pane of this.#panes.splice(0)) pane.remove()
  }

  /** Mark the panes that were chosen.
   *  @param {number[]} chosen */
  mark(chosen) {
    this.#panes.forEach((pane, i) => {
      pane.classList.toggle("d3po-chosen", chosen.includes(i))
      pane.setAttribute("aria-pressed", String(chosen.includes(i)))
    })
  }

  /** Put the panes in one place with the given one in front, or side by side for null.
   *  @param {number | null} front */
  stack(front) {
    this.element.classList.toggle("d3po-stacked", front !== null)
    this.#panes.forEach((pane, i) => {
      pane.classList.toggle("d3po-behind", front !== null && i !== front)
      pane.tabIndex = front !== null && i !== front ? -1 : 0
    })
  }

  /** @param {number} index */
  focus(index) {
    this.#panes[index]?.focus()
  }

  get focused() {
    return this.#panes.indexOf(/** @type {HTMLButtonElement} */ (document.activeElement))
  }

  reset() {
    this.#zoom = { scale: 1, x: 0, y: 0 }
    this.#draw()
  }

  /** Zoom by a factor about a point given in parts of a pane from its middle.
   *  @param {number} factor */
  zoom(factor, x = 0, y = 0) {
    const before = this.#zoom.scale
    const scale = Math.min(Math.max(before * factor, 1), LARGEST_ZOOM)
    const change = scale / before
    this.#zoom = { scale, x: x - (x - this.#zoom.x) * change, y: y - (y - this.#zoom.y) * change }
    this.#draw()
  }

  #addPane() {
    const pane = h(
      "button",
      { type: "button", class: "d3po-pane" },
      h("span", { class: "d3po-layers" }),
      h("span", { class: "d3po-badge", "aria-hidden": "true" })
    )
    this.#panes.push(pane)
    this.element.append(pane)
  }

  #draw() {
    const most = (this.#zoom.scale - 1) / 2
    this.#zoom.x = Math.min(Math.max(this.#zoom.x, -most), most)
    this.#zoom.y = Math.min(Math.max(this.#zoom.y, -most), most)
    const { scale, x, y } = this.#zoom
    this.element.classList.toggle("d3po-zoomed", scale > 1)
    this.element.style.setProperty(
      "--d3po-zoom",
      scale > 1
        ? `translate(${(100 * x).toFixed(3)}%, ${(100 * y).toFixed(3)}%) scale(${scale.toFixed(4)})`
        : "none"
    )
  }

  /** A point of the screen in parts of its pane from the pane's middle. The host scales the page under us.
   *  @param {MouseEvent} event */
  #place(event) {
    const { clientX: x, clientY: y } = event
    const boxes = this.#panes
      .filter((pane) => !pane.matches(".d3po-behind"))
      .map((pane) => pane.getBoundingClientRect())
    const box = boxes.find((b) => x >= b.left && x <= b.right && y >= b.top && y <= b.bottom) ?? boxes[0]
    return {
      x: (x - box.left) / box.width - 0.5,
      y: (y - box.top) / box.height - 0.5,
      width: box.width,
      height: box.height
    }
  }

  /** @param {WheelEvent} event */
  #wheel(event) {
    const root = this.element.closest(".d3po-root")
    if (!this.#panes.length || !root?.contains(document.activeElement)) return // the canvas's own
    event.preventDefault()
    event.stopPropagation()
    const { x, y } = this.#place(event)
    this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), x, y)
  }

  /** @param {PointerEvent} event */
  #press(event) {
    if (event.button !== 0 || !this.#panes.length) return
    if (event.isPrimary) this.#pointers.clear() // of a press that ended elsewhere
    if (!this.#pointers.size) this.#wandered = 0
    this.#pointers.set(event.pointerId, { x: event.clientX, y: event.clientY })
  }

  /** @param {PointerEvent} event */
  #move(event) {
    const last = this.#pointers.get(event.pointerId)
    if (!last) return
    if (!event.buttons) return this.#release(event)
    const before = this.#spread()
    const dx = event.clientX - last.x
    const dy = event.clientY - last.y
    this.#wandered += Math.hypot(dx, dy)
    last.x = event.clientX
    last.y = event.clientY
    if (this.#wandered <= STILL) return
    this.element.setPointerCapture(event.pointerId)
    const { x, y, width, height } = this.#place(event)
    if (before && this.#spread()) this.zoom(this.#spread() / before, x, y)
    this.#zoom.x += dx / width / this.#pointers.size
    this.#zoom.y += dy / height / this.#pointers.size
    this.#draw()
  }

  /** @param {PointerEvent} event */
  #release(event) {
    this.#pointers.delete(event.pointerId)
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const index = this.#panes.findIndex((pane) => pane.contains(/** @type {Node} */ (event.target)))
    const byPointer = event.detail > 0 // a press that moved the images is no click; a key is always one
    if (index >= 0 && !(byPointer && this.#wandered > STILL)) this.picked(index)
  }

  /** The distance of two fingers, or 0. */
  #spread() {
    const [p, q] = this.#pointers.values()
    return q ? Math.hypot(p.x - q.x, p.y - q.y) : 0
  }
}

/** Columns of a grid that is about as wide as it is high.
 *  @param {number} count */
function columnsOf(count) {
  return count <= 2 ? count : Math.ceil(Math.sqrt(count))
}
