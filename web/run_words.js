// What the sidebar says of a run.

import { counted, day, tr } from "./language.js"

/**
 * @typedef {object} WinRate
 * @property {number} share of the answers that prefer the LoRA
 * @property {number} low end of its 95% interval
 * @property {number} high
 * @property {number} answers
 * @property {number} when in seconds
 */

/**
 * @typedef {object} Run as the server tells of it
 * @property {string} name
 * @property {number} step
 * @property {number} rounds
 * @property {number} sets that it has learned from
 * @property {number} labels how many of their candidates somebody looked at
 * @property {string} model its family and a name of its weights
 * @property {number} rank
 * @property {number | null} accuracy on held-out preferences
 * @property {number | null} best of its checkpoints
 * @property {number | null} best_step
 * @property {number} size in bytes
 * @property {number} changed in seconds
 * @property {number[]} checkpoints
 * @property {string} problem why it cannot be read, or ""
 * @property {import("./before_after.js").Pictures | null} pictures
 * @property {WinRate | null} win_rate of the last blind session
 * @property {string | null} lora its name in Load LoRA's list
 * @property {string} as_it_is what confirms that it is to be deleted as it is now
 */

/** @param {number} value */
const percent = (value) => `${Math.round(100 * value)}%`

/** @param {number} bytes */
export const sizeOf = (bytes) =>
  bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`

/** @param {number} n */
export const steps = (n) => counted(n, "1 step", "{n} steps")

/** @param {Run} run */
export const progressOf = ({ rounds, step }) => `${counted(rounds, "1 round", "{n} rounds")} · ${steps(step)}`

/** @param {Run} run */
function heldOut({ step, accuracy, best, best_step }) {
  if (accuracy === null) return ""
  if (best === null || best_step === null || best_step === step) return percent(accuracy)
  return `${percent(accuracy)} (${tr("best {share} at step {n}", { share: percent(best), n: best_step })})`
}

/** The figures of a run that are known.
 *  @param {Run} run
 *  @returns {[name: string, said: string, title: string][]} */
export function factsOf(run) {
  const [family, weights = ""] = run.model.split(" ")
  const judged = `${counted(run.sets, "1 set", "{n} sets")}, ${tr("{n} candidates", { n: run.labels })}`
  /** @type {[name: string, said: string, title: string][]} */
  const facts = [
    ["learned from", judged, ""],
    ["held-out agreement", heldOut(run), ""]
  ]
  if (run.win_rate) {
    const { share, low, high, answers, when } = run.win_rate
    const won = `${percent(share)} (${percent(low)}–${percent(high)}) · ${day(new Date(1000 * when))}`
    facts.push(["win rate", won, tr("{n} answers, with the 95% interval", { n: answers })])
  }
  facts.push(
    ["base model", family, weights],
    ["rank", String(run.rank), ""],
    ["size", sizeOf(run.size), ""],
    ["checkpoints", run.checkpoints.join(", "), ""]
  )
  return facts.filter(([, said]) => said)
}
