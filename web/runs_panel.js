// The runs on disk: what became of pictures, figures, and what can be done with each.

import { api } from "../../scripts/api.js"
import { app } from "../../scripts/app.js"
import { tr } from "./language.js"
import { RunCard } from "./run_card.js"
import { h } from "./stage.js"

/** @typedef {import("./run_words.js").Run} Run */
/** @typedef {import("./sidebar.js").SidePanel} SidePanel */

const FEW = 6 // runs that are found without a search
const NONE =
  "No runs yet. Open the template d3po_picker_loop, choose your model, and press Run: what you train is " +
  "then listed here."

/** @implements {SidePanel} */
class Runs {
  /** By name, in the order that they are shown in.
   *  @type {Map<string, RunCard>} */
  #cards = new Map()
  #asked = 0

  constructor() {
    this.search = h("input", {
      type: "search",
      placeholder: tr("Find a run"),
      "aria-label": tr("Find a run"),
      hidden: true,
      oninput: () => this.#filter()
    })
    this.message = h("div", { class: "d3po-message", role: "status", hidden: true })
    this.templates = h("button", {
      type: "button",
      textContent: "browse templates",
      hidden: true,
      onclick: () => app.extensionManager.command.execute("Comfy.BrowseTemplates")
    })
    this.list = h("div", { class: "d3po-runs" })
    this.element = h(
      "div",
      { class: "d3po-side-panel" },
      this.search,
      this.message,
      this.templates,
      this.list
    )
  }

  async refresh() {
    const turn = ++this.#asked
    const reply = await api.fetchApi("/d3po/runs").catch(() => null)
    const said = reply?.ok ? await reply.json().catch(() => null) : null
    if (turn !== this.#asked) return
    if (said) this.#show(said.runs)
    else this.#tell("The server does not answer.")
  }

  leave() {
    this.#asked++ // what was asked for is not shown any more
  }

  /** @param {Run[]} runs */
  #show(runs) {
    const before = this.#cards
    this.#cards = new Map(
      runs.map((run) => {
        const card = before.get(run.name) ?? new RunCard(() => this.refresh())
        card.show(run)
        return [run.name, card]
      })
    )
    const elements = [...this.#cards.values()].map((card) => card.element)
    // those that stay where they are keep the focus
    if (elements.some((element, i) => this.list.children[i] !== element))
      this.list.replaceChildren(...elements)
    else while (this.list.children.length > elements.length) this.list.lastElementChild?.remove()
    this.search.hidden = runs.length <= FEW
    this.templates.hidden = runs.length > 0
    this.#tell(runs.length ? "" : NONE)
    this.#filter()
  }

  /** @param {string} text */
  #tell(text) {
    this.message.hidden = !text
    this.message.textContent = tr(text)
  }

  #filter() {
    const wanted = this.search.hidden ? "" : this.search.value.trim().toLowerCase()
    for (const [name, { element }] of this.#cards) element.hidden = !name.toLowerCase().includes(wanted)
  }
}

/** @returns {SidePanel} */
export const runsPanel = () => new Runs()
