// The datasets in the sidebar: what there is, and the ways in, to judge and to look through.

import { api } from "../../scripts/api.js"
import { button } from "./answers.js"
import { DatasetBrowser, renew, thumbnail } from "./dataset_browser.js"
import { ask, connect, Judging } from "./dataset_judging.js"
import { counted, moment, tr } from "./language.js"
import { resume } from "./outbox.js"
import { find, h } from "./stage.js"
import { tell } from "./told.js"

/** @typedef {import("./dataset_judging.js").StoredSet} StoredSet */

/**
 * @typedef {object} Glance what the list says of a dataset
 * @property {string} name
 * @property {string} [problem] what is wrong with it; then there is no more to say
 * @property {import("./stage.js").Reference[]} images of its newest sets
 * @property {number} sets
 * @property {number} unjudged by who judges
 * @property {Record<string, number>} annotators how many judgements of each count
 * @property {string | null} newest when its last set was made
 */

const ANNOTATOR = "d3po.annotator"

class Datasets {
  /** @type {DatasetBrowser | null} */
  #browser = null
  /** @type {Judging | null} */
  #judging = null
  #turn = 0
  #isShown = false

  constructor() {
    this.names = h("datalist", { id: "d3po-annotators" })
    this.who = h("input", {
      value: localStorage.getItem(ANNOTATOR) ?? "me",
      maxLength: 200,
      title: "The name under which judgements are kept",
      onchange: () => {
        localStorage.setItem(ANNOTATOR, this.annotator)
        this.refresh()
      }
    })
    this.who.setAttribute("list", this.names.id)
    this.message = h("p", { class: "d3po-note", role: "status" })
    this.list = h("div", { class: "d3po-cards" })
    this.place = h("div", { class: "d3po-shelf" })
    this.element = h(
      "div",
      { class: "d3po-datasets" },
      h("label", { class: "d3po-line" }, "Who judges", this.who),
      this.names,
      this.place
    )
    this.#show(null)
    api.addEventListener("d3po.kept", () => {
      if (this.#isShown) this.refresh()
    })
  }

  get annotator() {
    return this.who.value.trim() || "me"
  }

  /** Show a dataset's sets, or the list.
   *  @param {DatasetBrowser | null} browser */
  #show(browser) {
    this.#browser = browser
    this.place.replaceChildren(...(browser ? [browser.element] : [this.message, this.list]))
  }

  async refresh() {
    this.#isShown = true
    if (this.#judging) return
    if (this.#browser) return this.#browser.refresh()
    const turn = ++this.#turn
    try {
      const told = /** @type {Glance[]} */ (await ask("/d3po/datasets", { annotator: this.annotator }))
      if (turn === this.#turn) this.#list(told)
    } catch (error) {
      if (turn === this.#turn) this.message.textContent = /** @type {Error} */ (error).message
    }
  }

  leave() {
    this.#isShown = false
    this.#judging?.close()
  }

  /** @param {Glance[]} told */
  #list(told) {
    this.message.textContent = told.length
      ? ""
      : tr("No dataset yet. Put D3PO Save to Dataset behind a VAE Decode, or open the template {name}.", {
          name: "d3po_record_and_judge_later"
        })
    renew(
      this.list,
      told.map((dataset) => this.#card(dataset))
    )
    const names = new Set(told.flatMap(({ annotators }) => Object.keys(annotators ?? {})))
    this.names.replaceChildren(...[...names].map((value) => h("option", { value })))
  }

  /** @param {Glance} dataset */
  #card({ name, problem, images, sets, unjudged, annotators, newest }) {
    const title = h("h3", { dir: "auto" }, new Text(name))
    if (problem !== undefined)
      return h(
        "article",
        { class: "d3po-card", "data-name": name },
        title,
        h("p", { class: "d3po-damage", dir: "auto" }, new Text(problem))
      )
    const counts = [counted(sets, "1 set", "{n} sets"), tr("{n} to judge", { n: unjudged })]
    const people = Object.entries(annotators).map(([who, count]) => `\u2068${who}\u2069 ${count}`)
    return h(
      "article",
      { class: "d3po-card", "data-name": name },
      title,
      h("div", { class: "d3po-thumbnails" }, ...images.map((image) => thumbnail(image, ""))),
      h("p", {}, counts.join(" · ")),
      ...(people.length
        ? [h("p", { class: "d3po-note" }, tr("judged: {who}", { who: people.join(", ") }))]
        : []),
      ...(newest
        ? [h("p", { class: "d3po-note" }, tr("newest: {time}", { time: moment(new Date(newest)) }))]
        : []),
      h(
        "div",
        { class: "d3po-line" },
        button("judge", "", "judge", () => this.#judge(name)),
        button("browse", "", "look through", () => this.#browse(name))
      )
    )
  }

  /** @param {string} name */
  #browse(name) {
    const browser = new DatasetBrowser(name, {
      annotator: () => this.annotator,
      back: () => {
        this.#show(null)
        find(this.list, `[data-name="${name}"] [data-act="browse"]`)?.focus()
        this.refresh()
      },
      judge: (set) => this.#judge(name, set)
    })
    this.#show(browser)
    find(browser.element, "[data-act='back']").focus()
    browser.refresh()
  }

  /** Judge what is not judged yet, or one set again.
   *  @param {string} name
   *  @param {StoredSet | null} only */
  async #judge(name, only = null) {
    if (this.#judging) return
    this.#judging = new Judging(name, this.annotator, () => this.#judged(), only)
    try {
      await this.#judging.open()
    } catch (error) {
      this.#judging = null
      tell("D3PO", "error", /** @type {Error} */ (error).message)
    }
  }

  async #judged() {
    await this.#judging?.outbox.sent
    this.#judging = null
    if (this.#isShown) await this.refresh()
  }
}

/** The panel. `refresh` shows what there is now, `leave` is for when it is shown no longer. */
export function datasetsPanel() {
  const panel = new Datasets()
  document.head.append(
    h("link", { rel: "stylesheet", href: new URL("dataset_panel.css", import.meta.url).href })
  )
  connect()
  resume()
  return {
    element: panel.element,
    refresh: () => panel.refresh(),
    leave: () => panel.leave()
  }
}
