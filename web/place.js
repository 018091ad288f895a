// An element that stands in a node and opens in an expanded view; the keys it hears, and what it leaves to
// the canvas around it.

import { app } from "../../scripts/app.js"
import { tr } from "./language.js"
import { find, h } from "./stage.js"

/** The place of an element in its node, and the dialog that it opens in. It has a button "expand". */
export class Place {
  #closed

  /** @param {HTMLElement} root
   *  @param {string} label of the dialog
   *  @param {() => void} closed called when the dialog was left */
  constructor(root, label, closed = () => {}) {
    this.#closed = closed
    this.root = root
    this.element = h("div", { class: "d3po-place" }, root)
    this.dialog = h("dialog", {
      class: "d3po-dialog",
      "aria-label": label,
      onkeydown: (event) => event.stopPropagation(),
      onkeyup: (event) => event.stopPropagation(),
      onclose: () => this.#collapse()
    })
  }

  /** Keys go on where the element that had the focus is gone or disabled. */
  holdFocus() {
    const now = /** @type {(Element & { disabled?: boolean }) | null} */ (document.activeElement)
    if (now === document.body || now?.disabled) this.root.focus({ preventScroll: true })
  }

  expand() {
    if (this.dialog.open) return this.dialog.close()
    document.body.append(this.dialog)
    this.dialog.append(this.root)
    this.dialog.showModal()
    find(this.root, ".d3po-expand").textContent = tr("close")
    this.root.focus()
  }

  /** Leave the expanded view, as the node is gone. */
  close() {
    if (this.dialog.open) this.dialog.close()
    this.dialog.remove()
  }

  #collapse() {
    find(this.root, ".d3po-expand").textContent = tr("expand")
    this.element.append(this.root)
    this.dialog.remove()
    this.root.focus()
    this.#closed()
  }
}

/** Do what a key does, and keep it from the host; but leave fields, lists and buttons their own keys.
 *  @param {KeyboardEvent} event
 *  @param {(event: KeyboardEvent) => (() => void) | null} actOf what a key does now */
export function act(event, actOf) {
  const composed = "[]{}?".includes(event.key) // on many keyboards with Option or AltGr
  if (!composed && (event.ctrlKey || event.altKey || event.metaKey)) return
  const target = /** @type {Element} */ (event.target)
  const own =
    target.matches?.("select") || (target.matches?.("input") && !/^[a-z0-9[\]{}?]$/i.test(event.key))
  if (own && event.key !== "Escape") return event.stopPropagation()
  const done = actOf(event)
  if (done) {
    event.preventDefault()
    event.stopPropagation()
    if (!event.repeat) done()
  } else if (event.key === "Enter" || event.key === " ") {
    if (event.repeat) event.preventDefault()
    event.stopPropagation() // the button's own
  }
}

/** A button that acts while it is held.
 *  @param {HTMLElement} button
 *  @param {(on: boolean) => void} hold */
export function held(button, hold) {
  button.addEventListener("pointerdown", () => hold(true))
  for (const event of ["pointerup", "pointerleave", "pointercancel"])
    button.addEventListener(event, () => hold(false))
  return button
}

/** The list of keys, as the help shows it.
 *  @param {[key: string, what: string][]} keys */
export const listOf = (keys) =>
  h(
    "dl",
    {},
    ...keys.flatMap(([key, what]) => [
      h("dt", {}, h("kbd", { textContent: key })),
      h("dd", { textContent: what })
    ])
  )

/** In the canvas renderer an element over the canvas hides it: hand on the wheel and the middle button, with
 *  which users move about. In Nodes 2.0 they reach the canvas by themselves.
 *  @param {HTMLElement} element */
export function leaveToCanvas(element) {
  /** @param {OfTheMouse} name
   *  @param {(event: MouseEvent) => boolean} wanted
   *  @returns {(event: MouseEvent) => void} */
  const handOn = (name, wanted) => (event) => {
    if (!LiteGraph.vueNodesMode && !event.defaultPrevented && wanted(event)) app.canvas[name](event)
  }
  element.addEventListener(
    "wheel",
    handOn("processMouseWheel", () => true)
  )
  element.addEventListener(
    "pointerdown",
    handOn("processMouseDown", (event) => event.button === 1)
  )
  element.addEventListener(
    "pointermove",
    handOn("processMouseMove", (event) => (event.buttons & 4) !== 0)
  )
  element.addEventListener(
    "pointerup",
    handOn("processMouseUp", (event) => event.button === 1)
  )
}
