// The picker's element around the stage: head, banner, keys, message, answers, foot; in the node or expanded.

import { button } from "./answers.js"
import { MODES } from "./judging.js"
import { tr } from "./language.js"
import { act, listOf, Place } from "./place.js"
import { find, h } from "./stage.js"
import { KEYS, KEYS_ALWAYS } from "./words.js"

/** @typedef {import("./judging.js").Kind} Kind */
/** @typedef {import("./judging.js").Mode} Mode */
/** @typedef {import("./picker.js").Settings} Settings */

/**
 * @typedef {object} Does what the panel's controls do
 * @property {(settings: Partial<Settings>) => void} configure
 * @property {(at: number) => void} goTo a question
 * @property {(by: number) => void} step among the questions
 * @property {() => void} toggleTogether
 * @property {() => void} undo
 * @property {() => void} cancel
 * @property {() => void} end continue with the answers there are
 * @property {(event: KeyboardEvent) => (() => void) | null} actOf what a key does now
 * @property {() => void} unflip
 * @property {() => void} closed the expanded view was left
 */

export class Panel {
  #does
  #place

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
      onchange: () => {
        const on = this.carryOn.checked
        does.configure({ continue_when_done: on, next_round: on && this.nextRound.checked })
      }
    })
    this.nextRound = h("input", {
      type: "checkbox",
      onchange: () => {
        const on = this.nextRound.checked
        does.configure({ continue_when_done: on || this.carryOn.checked, next_round: on })
      }
    })
    this.banner = h(
      "div",
      { class: "d3po-banner", hidden: true },
      h("span", { textContent: "The run waits for your picks." }),
      button("cancel", "", "cancel the run", does.cancel)
    )
    this.ending = h(
      "div",
      { class: "d3po-banner", hidden: true },
      h("span", { textContent: "Enough answers: the result is clear." }),
      button("result", "", "see the result", does.end)
    )
    this.help = h("div", { class: "d3po-help", hidden: true })
    this.prompt = h("div", { class: "d3po-prompt", hidden: true })
    this.message = h("div", { class: "d3po-message", hidden: true })
    this.answers = h("div", { class: "d3po-answers" })
    this.told = h("div", { class: "d3po-told", hidden: true })
    this.root = this.#root(stage)
    this.#place = new Place(this.root, "Pair preference picker, expanded", does.closed)
  }

  /** The element that stands in the node. */
  get place() {
    return this.#place.element
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
      ),
      h(
        "label",
        {
          class: "d3po-next-round",
          title: "When the run has ended with your picks press Run by itself, and ask about what comes"
        },
        this.nextRound,
        "then the next round"
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
        onkeydown: (event) => act(event, this.#does.actOf),
        onkeyup: (event) => this.#keyUp(event)
      },
      this.#head(),
      this.banner,
      this.ending,
      this.help,
      this.message,
      this.prompt,
      stage,
      this.answers,
      this.status,
      this.told,
      this.#foot()
    )
  }

  /** Show the settings and what is on screen: a kind of question, "done" or "empty".
   *  @param {Settings} settings
   *  @param {Kind | "done" | "empty"} kind
   *  @param {{ waiting: boolean, enough: boolean }} state whether a run waits for the picks; whether there
   *    are enough answers, though more could be given
   *  @param {string} text the prompt, where it is known */
  show(settings, kind, { waiting, enough }, text) {
    this.mode.value = settings.mode
    this.carryOn.checked = settings.continue_when_done
    this.nextRound.checked = settings.next_round
    this.root.dataset.kind = kind
    this.banner.hidden = !waiting
    this.ending.hidden = !enough
    this.prompt.hidden = !text
    this.prompt.title = this.prompt.textContent = text
  }

  /** @param {string} text */
  tell(text) {
    this.message.hidden = !text
    this.message.textContent = tr(text)
  }

  /** Show what a blind session came to.
   *  @param {string} text */
  report(text) {
    this.told.hidden = !text
    this.told.textContent = text
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

  holdFocus() {
    this.#place.holdFocus()
  }

  expand() {
    this.#place.expand()
  }

  /** Leave the expanded view, as the node is gone. */
  close() {
    this.#place.close()
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
    this.help.replaceChildren(listOf(keys))
  }
}
