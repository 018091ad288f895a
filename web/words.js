// What the picker says: keys, labels and the summary of a judged set.

import { thumb } from "./answers.js"
import { record } from "./judgement.js"
import { BAD, DOWN, FIRST, SECOND, SKIP, TIE, UP } from "./judging.js"

/** @typedef {import("./judging.js").Answer} Answer */
/** @typedef {import("./judgement.js").Judgement} Judgement */
/** @typedef {import("./judging.js").Kind} Kind */
/** @typedef {import("./judging.js").Question} Question */
/** @typedef {import("./stage.js").Label} Label */
/** @typedef {[key: string, what: string]} Key */

/** @type {Record<Kind, Key[]>} */
export const KEYS = {
  pair: [
    ["1 or ←", "the left one"],
    ["2 or →", "the right one"],
    ["3 or ↓", "no difference"],
    ["S", "skip"],
    ["B", "both bad"],
    ["F", "hold: the other image, in the same place"],
    ["O", "same place or side by side"]
  ],
  best: [
    ["1 – 9", "that one is best"],
    ["S", "skip"],
    ["B", "none is good"]
  ],
  star: [
    ["1 – 5", "that many stars"],
    ["S", "skip"]
  ],
  thumb: [
    ["1 or ↑", "thumb up"],
    ["2 or ↓", "thumb down"],
    ["S", "skip"]
  ]
}
/** @type {Key[]} */
export const KEYS_ALWAYS = [
  ["U", "undo"],
  ["[ and ]", "previous, next question"],
  ["{ and }", "previous, next set"],
  ["+ − 0", "zoom in, out, whole image"],
  ["E", "expand"],
  ["?", "these keys"]
]
/** @type {Record<string, string>} */
const SAID = {
  [FIRST]: "preferred",
  [SECOND]: "preferred",
  [TIE]: "no difference",
  [SKIP]: "skipped",
  [BAD]: "bad",
  [UP]: "thumb up",
  [DOWN]: "thumb down"
}

export const GONE =
  "These images are gone from the server. Run again: the same candidates come back, and your answers " +
  "are kept."
export const MOST_SUMMED = 16 // candidates in a judged set's summary

/** What a question's answer says, or "" if it has none.
 *  @param {Question} question */
export function saidOf({ kind, answer }) {
  if (answer === undefined) return ""
  if (typeof answer === "number") return kind === "star" ? `${answer} stars` : "chosen"
  return SAID[answer]
}

/** What pane i of a question is called.
 *  @param {Question} question
 *  @param {number} i
 *  @param {number} count of panes
 *  @returns {Label} */
export function labelOf({ kind, answer }, i, count) {
  if (kind === "star") return { badge: "", text: "The candidate to rate" }
  if (kind === "thumb")
    return { badge: answer === UP || answer === DOWN ? thumb(answer) : "", text: "The candidate to judge" }
  const name = count > 2 || kind === "best" ? `Candidate ${i + 1}` : ["Left candidate", "Right candidate"][i]
  return { badge: String(i + 1), text: `${name}: choose it with ${i + 1}` }
}

/** What a candidate of a judged set is called.
 *  @param {Judgement | undefined} judged
 *  @param {number} count of candidates
 *  @param {number} candidate
 *  @param {number} place what it is numbered by
 *  @returns {Label} */
export function summaryOf(judged, count, candidate, place) {
  if (judged?.good) {
    const answer = judged.good.includes(candidate) ? UP : judged.bad?.includes(candidate) ? DOWN : SKIP
    return {
      badge: answer === SKIP ? SAID[SKIP] : thumb(answer),
      text: `Candidate ${place + 1}: ${SAID[answer]}`
    }
  }
  const { won, lost } = record(judged, count)[candidate]
  return {
    badge: `${won} ✓  ${lost} ✗`,
    text: `Candidate ${place + 1}: preferred ${won} times, rejected ${lost} times`
  }
}

/** The candidates of a judged set, the most preferred first.
 *  @param {Judgement | undefined} judged
 *  @param {number} count of candidates */
export function byWins(judged, count) {
  const score = record(judged, count).map(({ won, lost }) => won - lost)
  return score.map((_, i) => i).sort((a, b) => score[b] - score[a])
}
