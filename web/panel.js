// The picker's element around the stage: head, banner, keys, message, answers, foot; in the node or expanded.

import { button } from "./answers.js"
import { MODES } from "./judging.js"
import { find, h } from "./stage.js"
import { KEYS, KEYS_ALWAYS } from "./words.js"

/** @typedef {import("./judging.js").Kind} Kind */
/** @typedef {import("./judging.js").Mode} Mode */
/** @typedef {import("./view.js").Settings} Settings */

/**
 * @typedef {object} Does what the panel's controls do
 * @property {(settings: Partial<Settings>) => void} configure
 * @property {(at: number) => void} goTo a question
 * @property {(by: number) => void} step among the questions
 * @property {() => void} toggleTogether
 * @property {() => void} undo
 * @property {() => void} cancel
 * @property {(event: KeyboardEvent) => (() => void) | null} actOf what a key does now
 * @property {() => void} unflip
 */

export class Panel {
  #does

  /** @param {HTMLElement} stage
   *  @param {Does} does */
  constructor(stage, does) {
    this.#does = does
    this.mode = this.#modes()
    this.progress = h("progress", { "aria-label": "Answered questions of this set" })
    this.count = h("span", { class: "d3po-count" })
    this.status = h("div", { class: "d3po-status", role: "status", "aria-live": "polite" })
    this.slider = h("input", {
      type: "range",
      class: "d3po-slider",
      min: 0,
      "aria-label": "Question",
      oninput: () => does.goTo(Number(this.slider.value))
    })
    this.carryOn = h("input", {
      type: "checkbox",
      onchange: () => does.configure({ continue_when_done: this.carryOn.checked })
    })
    this.banner = h(
      "div",
      { class: "d3po-banner", hidden: true },
      h("span", { textContent: "The run waits for your picks." }),
      button("cancel", "", "cancel the run", does.cancel)
    )
    this.help = h("div", { class: "d3po-help", hidden: true })
    this.message = h("div", { class: "d3po-message", hidden: true })
    this.answers = h("div", { class: "d3po-answers" })
    this.root = this.#root(stage)
    this.place = h("div", { class: "d3po-place" }, this.root)
    this.dialog = h("dialog", {
      class: "d3po-dialog",
      "aria-label": "Pair preference picker, expanded",
      onkeydown: (event) => event.stopPropagation(),
      onkeyup: (event) => event.stopPropagation(),
      onclose: () => this.#collapse()
    })
  }

  #modes() {
    const title = "How candidates are judged"
    return h(
      "select",
      {
        class: "d3po-mode",
        title,
        "aria-label": title,
        onchange: () => {
          this.#does.configure({ mode: /** @type {Mode} */ (this.mode.value) })
          this.root.focus()
        }
      },
      ...Object.entries(MODES).map(([value, { label }]) => h("option", { value, textContent: label }))
    )
  }

  #head() {
    return h(
      "div",
      { class: "d3po-head" },
      this.mode,
      this.count,
      this.progress,
      button("together", "O", "same place", this.#does.toggleTogether),
      button("expand", "E", "expand", () => this.expand()),
      button("keys", "?", "keys", () => this.toggleKeys())
    )
  }

  #foot() {
    return h(
      "div",
      { class: "d3po-foot" },
      button("undo", "U", "undo", this.#does.undo),
      button("previous", "[", "‹", () => this.#does.step(-1)),
      this.slider,
      button("next", "]", "›", () => this.#does.step(1)),
      h(
        "label",
        { title: "After the last answer queue the run again by itself" },
        this.carryOn,
        "continue when done"
      )
    )
  }

  /** @param {HTMLElement} stage */
  #root(stage) {
    return h(
      "div",
      {
        class: "d3po-root",
        tabIndex: 0,
        role: "group",
        "aria-label": "Pair preference picker",
        title: "",
        "data-capture-wheel": "true",
        onkeydown: (event) => this.#key(event),
        onkeyup: (event) => this.#keyUp(event)
      },
      this.#head(),
      this.banner,
      this.help,
      this.message,
      stage,
      this.answers,
      this.status,
      this.#foot()
    )
  }

  /** Show the settings and what is on screen: a kind of question, "done" or "empty".
   *  @param {Settings} settings
   *  @param {Kind | "done" | "empty"} kind
   *  @param {boolean} waiting whether a run waits for the picks */
  show(settings, kind, waiting) {
    this.mode.value = settings.mode
    this.carryOn.checked = settings.continue_when_done
    this.root.dataset.kind = kind
    this.banner.hidden = !waiting
  }

  /** @param {string} text */
  tell(text) {
    this.message.hidden = !text
    this.message.textContent = text
  }

  /** Show how far a set is: answered questions, those to come, and the question on screen of how many.
   *  @param {{ done: number, todo: number, at: number, questions: number, canUndo: boolean }} progress
   *  @param {boolean} isThere whether there is a set */
  showProgress({ done, todo, at, questions, canUndo }, isThere) {
    this.progress.max = Math.max(done + todo, 1)
    this.progress.value = isThere ? done : 0
    this.slider.max = String(Math.max(questions - 1, 0))
    this.slider.value = String(at)
    this.slider.disabled = !isThere || questions < 2
    this.#button("undo").disabled = !isThere || !canUndo
    this.#button("previous").disabled = !isThere || at <= 0
    this.#button("next").disabled = !isThere || at >= questions - 1
  }

  /** Show whether both images of a pair are in one place; no other question has that choice.
   *  @param {boolean} isPair
   *  @param {boolean} together */
  showTogether(isPair, together) {
    const toggle = this.#button("together")
    toggle.hidden = !isPair
    toggle.setAttribute("aria-pressed", String(together))
  }

  /** @param {string} name */
  #button(name) {
    return /** @type {HTMLButtonElement} */ (find(this.root, `.d3po-${name}`))
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
    this.#button("expand").textContent = "close"
    this.root.focus()
  }

  /** Leave the expanded view, as the node is gone. */
  close() {
    if (this.dialog.open) this.dialog.close()
    this.dialog.remove()
  }

  #collapse() {
    this.#button("expand").textContent = "expand"
    this.place.append(this.root)
    this.dialog.remove()
    this.root.focus()
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const composed = "[]{}?".includes(event.key) // on many keyboards with Option or AltGr
    if (!composed && (event.ctrlKey || event.altKey || event.metaKey)) return
    const target = /** @type {Element} */ (event.target)
    const own =
      target.matches?.("select") || (target.matches?.("input") && !/^[a-z0-9[\]{}?]$/i.test(event.key))
    if (own && event.key !== "Escape") return event.stopPropagation()
    const act = this.#does.actOf(event)
    if (act) {
      event.preventDefault()
      event.stopPropagation()
      if (!event.repeat) act()
    } else if (event.key === "Enter" || event.key === " ") {
      if (event.repeat) event.preventDefault()
      event.stopPropagation() // the button's own
    }
  }

  /** @param {KeyboardEvent} event */
  #keyUp(event) {
    if (event.key.toLowerCase() === "f") this.#does.unflip()
    event.stopPropagation()
  }

  toggleKeys() {
    this.help.hidden = !this.help.hidden
    this.drawKeys()
  }

  drawKeys() {
    const kind = this.root.dataset.kind ?? ""
    const keys = [...(kind in KEYS ? KEYS[/** @type {Kind} */ (kind)] : []), ...KEYS_ALWAYS]
    const rows = keys.flatMap(([key, what]) => [
      h("dt", {}, h("kbd", { textContent: key })),
      h("dd", { textContent: what })
    ])
    this.help.replaceChildren(h("dl", {}, ...rows))
  }
}
