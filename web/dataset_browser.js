// All sets of a dataset, page by page: what they look like and what was said of them.

import { button } from "./answers.js"
import { ask } from "./dataset_judging.js"
import { post, refusal } from "./inbox.js"
import { moment, tr } from "./language.js"
import { bestOf, inWords } from "./said.js"
import { address, h } from "./stage.js"
import { tell } from "./told.js"

/** @typedef {import("./dataset_judging.js").Page & { total: number }} Page total: sets on all pages */
/** @typedef {import("./dataset_judging.js").StoredSet} StoredSet */

/**
 * @typedef {object} Does what the browser's buttons do
 * @property {() => string} annotator who judges
 * @property {() => void} back to the list
 * @property {(set: StoredSet | null) => void} judge one set, or all that are not judged
 */

const FILTERS = { all: "all sets", unjudged: "not judged by you", judged: "judged by you" }
const MOST_SHOWN = 9 // candidates of a set
const TYPED = 300 // ms after the last key until it is searched

/** A candidate, small.
 *  @param {import("./stage.js").Reference} image
 *  @param {string} text
 *  @param {string} badge */
export const thumbnail = (image, text, badge = "") =>
  h(
    "span",
    { class: "d3po-thumbnail" },
    h("img", { src: address(image), alt: text, title: text, loading: "lazy", decoding: "async" }),
    ...(badge ? [h("span", { class: "d3po-badge", "aria-hidden": "true" }, badge)] : [])
  )

/** Show cards in the place of others. The button that has the focus keeps it.
 *  @param {HTMLElement} place
 *  @param {HTMLElement[]} cards each with a data-name */
export function renew(place, cards) {
  const focused = place.contains(document.activeElement) ? document.activeElement : null
  const act = focused?.getAttribute("data-act")
  const name = focused?.closest("[data-name]")?.getAttribute("data-name")
  place.replaceChildren(...cards)
  const own = cards.find((card) => card.dataset.name === name)
  if (own && act) /** @type {HTMLElement | null} */ (own.querySelector(`[data-act="${act}"]`))?.focus()
}

export class DatasetBrowser {
  #does
  #page = 0
  #turn = 0
  /** @type {number | undefined} */
  #timer

  /** @param {string} name of the dataset
   *  @param {Does} does */
  constructor(name, does) {
    this.name = name
    this.#does = does
    this.which = h(
      "select",
      { "aria-label": "Which sets", onchange: () => this.#from(0) },
      ...Object.entries(FILTERS).map(([value, label]) => h("option", { value, textContent: label }))
    )
    this.search = h("input", {
      type: "search",
      placeholder: tr("search in prompts"),
      "aria-label": "Search in prompts",
      maxLength: 200,
      oninput: () => {
        clearTimeout(this.#timer)
        this.#timer = setTimeout(() => this.#from(0), TYPED)
      }
    })
    this.message = h("p", { class: "d3po-note", role: "status" })
    this.cards = h("div", { class: "d3po-cards" })
    this.before = button("page-before", "", "‹", () => this.#from(this.#page - 1))
    this.after = button("page-after", "", "›", () => this.#from(this.#page + 1))
    this.before.title = this.before.ariaLabel = tr("newer sets")
    this.after.title = this.after.ariaLabel = tr("older sets")
    this.place = h("span", { class: "d3po-count" })
    this.element = this.#layout()
  }

  #layout() {
    return h(
      "section",
      { class: "d3po-browser" },
      h(
        "div",
        { class: "d3po-line" },
        button("back", "", "all datasets", () => this.#does.back()),
        h("span", { class: "d3po-space" }),
        button("judge", "", "judge", () => this.#does.judge(null))
      ),
      h("h3", { dir: "auto" }, new Text(this.name)),
      h("div", { class: "d3po-line" }, this.which, this.search),
      this.message,
      this.cards,
      h("div", { class: "d3po-line d3po-pager" }, this.before, this.place, this.after)
    )
  }

  /** @param {number} page */
  #from(page) {
    this.#page = page
    return this.refresh()
  }

  /** Show the page as it is now. */
  async refresh() {
    const turn = ++this.#turn
    const query = {
      dataset: this.name,
      annotator: this.#does.annotator(),
      filter: this.which.value,
      search: this.search.value.trim(),
      page: String(this.#page)
    }
    try {
      const told = /** @type {Page} */ (await ask("/d3po/datasets/sets", query))
      if (turn === this.#turn) this.#show(told)
    } catch (error) {
      if (turn === this.#turn) this.message.textContent = /** @type {Error} */ (error).message
    }
  }

  /** @param {Page} told */
  #show({ sets, total, size }) {
    if (!sets.length && this.#page) return this.#from(Math.max(Math.ceil(total / size) - 1, 0))
    const first = this.#page * size
    this.message.textContent = total ? "" : tr("No set fits.")
    renew(
      this.cards,
      sets.map((set) => this.#card(set))
    )
    this.place.textContent = total
      ? tr("{first} to {last} of {total}", { first: first + 1, last: first + sets.length, total })
      : ""
    this.before.disabled = !this.#page
    this.after.disabled = first + size >= total
  }

  /** @param {StoredSet} set */
  #card(set) {
    const own = set.said.find(({ annotator }) => annotator === this.#does.annotator())
    const judge = button("again", "", own ? "judge again" : "judge", () => this.#does.judge(set))
    judge.disabled = !set.images.length
    const withdraw = button("withdraw", "", "withdraw", () => this.#withdraw(set, withdraw))
    withdraw.title = tr("Take back what you said of this set")
    return h(
      "article",
      { class: "d3po-card", "data-name": set.set },
      this.#pictures(set, own),
      ...(set.text ? [h("p", { class: "d3po-words", dir: "auto" }, new Text(set.text))] : []),
      h(
        "p",
        { class: "d3po-note" },
        `${moment(new Date(set.created))} · ${tr(set.held_out ? "held out" : "for training")}`
      ),
      ...set.said.map(({ annotator, judgement }) =>
        h(
          "p",
          { class: "d3po-note" },
          h("bdi", {}, new Text(annotator)),
          ": ",
          h("span", { dir: "ltr" }, inWords(judgement))
        )
      ),
      h("div", { class: "d3po-line" }, judge, ...(own ? [withdraw] : []))
    )
  }

  /** A set's candidates, of which those are marked that its judge prefers most: who judges now, if they have.
   *  @param {StoredSet} set
   *  @param {import("./dataset_judging.js").Said | undefined} own */
  #pictures({ candidates, images, said }, own) {
    const judged = own ?? said[0]
    const best = judged ? bestOf(judged.judgement, candidates) : []
    const shown = images.slice(0, MOST_SHOWN).map((image, i) => {
      const name = tr("Candidate {n}", { n: i + 1 })
      const made = thumbnail(image, name, best.includes(i) ? `${i + 1} ✓` : String(i + 1))
      made.classList.toggle("d3po-best", best.includes(i))
      return made
    })
    const rest = images.length - shown.length
    return h(
      "div",
      { class: "d3po-thumbnails" },
      ...shown,
      ...(rest > 0 ? [h("span", { class: "d3po-rest" }, `+${rest}`)] : []),
      ...(images.length ? [] : [h("span", { class: "d3po-note" }, "A picture of this set is missing.")])
    )
  }

  /** @param {StoredSet} set
   *  @param {HTMLButtonElement} pressed */
  async #withdraw(set, pressed) {
    pressed.disabled = true
    const body = { dataset: this.name, set: set.set, annotator: this.#does.annotator() }
    const reply = await post("/d3po/datasets/withdraw", body).catch(() => null)
    if (!reply?.ok) tell("D3PO", "error", await refusal(reply))
    await this.refresh()
  }
}
