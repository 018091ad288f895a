// The widget's value: the picks of every set there ever was, as compact JSON. See nodes/picking.py.

const VERSION = 1
const DRAFTED = 2000 // ms after which ComfyUI has the workflow in its draft

/** @typedef {import("./judgement.js").Judgement} Judgement */

/** @type {(value: unknown) => boolean} */
const isObject = (value) => value !== null && typeof value === "object" && !Array.isArray(value)

export class Picks {
  #text = ""
  /** @type {Record<string, Judgement>} */
  #sets = Object.create(null)
  #changed = false
  /** @type {Record<string, Judgement | null>} */
  #recent = {}
  #touched = 0
  /** Why the text cannot be read, or "". Such a text is kept as it is. */
  problem = ""
  #heard

  /** @param {() => void} heard called when a person's judgement was put */
  constructor(heard) {
    this.#heard = heard
  }

  get text() {
    if (this.#changed) {
      this.#text = Object.keys(this.#sets).length
        ? JSON.stringify({ version: VERSION, sets: this.#sets })
        : ""
      this.#changed = false
    }
    return this.#text
  }

  set text(text) {
    this.#text = text ?? ""
    this.#sets = Object.create(null)
    this.#changed = false
    this.problem = ""
    if (!this.#text.trim()) return
    try {
      const value = JSON.parse(this.#text)
      if ((value?.version ?? VERSION) !== VERSION)
        throw new Error(`they are of version ${value.version}; update the pack`)
      if (
        !isObject(value) ||
        !isObject(value.sets ?? {}) ||
        !Object.values(value.sets ?? {}).every(isObject)
      ) {
        throw new Error('they are not {"version": 1, "sets": {…}}')
      }
      this.#sets = Object.assign(Object.create(null), value.sets)
    } catch (error) {
      this.problem = `These picks cannot be read: ${/** @type {Error} */ (error).message}`
    }
  }

  /** The judgement of a set, if it has one.
   *  @param {string} set
   *  @returns {Judgement | undefined} */
  of(set) {
    return this.#sets[set]
  }

  /** @param {string} set */
  finished(set) {
    const judged = this.of(set)
    return judged !== undefined && !judged.open
  }

  /** Keep the judgement of a set; undefined forgets it.
   *  @param {string} set
   *  @param {Judgement | undefined} judgement */
  put(set, judgement) {
    if (this.problem) return
    if (judgement === undefined) delete this.#sets[set]
    else this.#sets[set] = judgement
    this.#changed = true
    this.#recent = { ...this.recent, [set]: judgement ?? null }
    this.#touched = Date.now()
    this.#heard()
  }

  /** What was put so lately that ComfyUI may not have kept it yet: judgements by set, null for a forgotten
   *  one. */
  get recent() {
    return Date.now() - this.#touched < DRAFTED ? this.#recent : {}
  }
}
