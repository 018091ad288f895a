// What a person says of a dataset's sets, on its way to the server: it is kept in the browser until the
// server has it on disk, also over a reload, and sent again where that fails.

import { post, refusal } from "./inbox.js"

/** @typedef {import("./judgement.js").Judgement} Judgement */
/** @typedef {import("./judging.js").Mode} Mode */

/**
 * @typedef {object} Said what is said of a set now
 * @property {Judgement | null} judgement
 * @property {Mode} mode
 * @property {boolean} back whether what was finished before is taken back
 */

const UNSENT = "d3po.unsent."
const [SOON, LATE] = [1000, 30000] // ms until it is tried again: at first, at most

/** By their place in the browser's storage.
 *  @type {Map<string, Outbox>} */
const outboxes = new Map()

/** What one person says of one dataset. */
export class Outbox {
  #sending = false
  #wait = SOON
  /** Settles when the attempt that goes on has ended. */
  sent = Promise.resolve()
  /** Why the newest attempt failed, or "". */
  problem = ""
  /** Called when the problem is another. */
  heard = () => {}

  /** @param {string} dataset
   *  @param {string} annotator */
  constructor(dataset, annotator) {
    this.dataset = dataset
    this.annotator = annotator
    this.#send()
  }

  get #storage() {
    return UNSENT + JSON.stringify([this.dataset, this.annotator])
  }

  /** What the server does not have yet, by set; also what is begun.
   *  @returns {Record<string, Said>} */
  get held() {
    return JSON.parse(localStorage.getItem(this.#storage) ?? "{}")
  }

  /** Keep what was said of a set, or forget it.
   *  @param {string} set
   *  @param {Said | null} said */
  #hold(set, said) {
    const { [set]: _, ...others } = this.held
    const held = said ? { ...others, [set]: said } : others
    if (Object.keys(held).length) localStorage.setItem(this.#storage, JSON.stringify(held))
    else localStorage.removeItem(this.#storage)
  }

  /** Take what is said of a set now. What is only begun stays here.
   *  @param {string} set
   *  @param {Said} said */
  put(set, said) {
    const back = said.back || Boolean(this.held[set]?.back)
    this.#hold(set, said.judgement || back ? { ...said, back } : null)
    this.#send()
  }

  #send() {
    if (!this.#sending) this.sent = this.#attempt()
  }

  async #attempt() {
    this.#sending = true
    const failed = new Set()
    let problem = ""
    for (;;) {
      const next = Object.entries(this.held).find(([set, said]) => isNews(said) && !failed.has(set))
      if (!next) break
      const [set, said] = next
      const why = await this.#post(set, said)
      problem ||= why
      if (why) failed.add(set)
      else if (JSON.stringify(this.held[set]) === JSON.stringify(said))
        this.#hold(set, said.judgement?.open ? { ...said, back: false } : null)
    }
    this.#sending = false
    this.#tell(problem)
    if (!problem) return
    setTimeout(() => this.#send(), this.#wait)
    this.#wait = Math.min(2 * this.#wait, LATE)
  }

  /** Why the server does not keep what was said, or "".
   *  @param {string} set
   *  @param {Said} said
   *  @returns {Promise<string>} */
  async #post(set, said) {
    const { dataset, annotator } = this
    const { judgement, mode } = said
    const about = { dataset, set, annotator }
    const reply = await (isWhole(said)
      ? post("/d3po/datasets/judge", { ...about, mode, judgement })
      : post("/d3po/datasets/withdraw", about)
    ).catch(() => null)
    if (reply?.ok) return ""
    return refusal(reply)
  }

  /** @param {string} problem */
  #tell(problem) {
    if (!problem) this.#wait = SOON
    if (problem === this.problem) return
    this.problem = problem
    this.heard()
  }
}

/** @param {Said} said */
const isWhole = ({ judgement }) => Boolean(judgement && !judgement.open)

/** Whether the server does not know it yet.
 *  @param {Said} said */
const isNews = (said) => isWhole(said) || said.back

/** @param {string} dataset
 *  @param {string} annotator */
export function outboxOf(dataset, annotator) {
  const key = JSON.stringify([dataset, annotator])
  const there = outboxes.get(key) ?? new Outbox(dataset, annotator)
  outboxes.set(key, there)
  return there
}

/** Send what an earlier page could not. */
export function resume() {
  for (const key of Object.keys(localStorage)) {
    if (!key.startsWith(UNSENT)) continue
    const [dataset, annotator] = JSON.parse(key.slice(UNSENT.length))
    outboxOf(dataset, annotator)
  }
}
