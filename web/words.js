// What the picker says: keys, labels and the summary of a judged set.

import { thumb } from "./answers.js"
import { record, standing } from "./judgement.js"
import { BAD, DOWN, FIRST, SECOND, SKIP, TIE, UP } from "./judging.js"
import { tr } from "./language.js"

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

/** @param {number} place from 0 */
const candidateOf = (place) => tr("Candidate {n}", { n: place + 1 })

/** How far a session is.
 *  @param {{ done: number, left: number, atMost: boolean, place: number, sets: number, blind: boolean }} way
 *  place of the set on screen, from 0 */
export function progressOf({ done, left, atMost, place, sets, blind }) {
  const todo = tr(atMost ? "at most {n} to do" : "{n} to do", { n: left })
  const where = tr(blind ? "pair {n} of {sets}" : "set {n} of {sets}", { n: place + 1, sets })
  return `${tr("{n} done", { n: done })}, ${todo}${sets > 1 ? ` · ${where}` : ""}`
}

/** What is asked, and what was answered.
 *  @param {Question} question
 *  @param {number} place among the questions, from 0
 *  @param {number | null} count of questions, where it is known
 *  @param {boolean} blind */
export function askedOf(question, place, count, blind) {
  const which = tr(count ? "Question {n} of {count}" : "Question {n}", { n: place + 1, count: count ?? 0 })
  const said = saidOf(question)
  return `${blind ? tr("Which is better?") : which}${said && ` · ${tr("answered: {said}", { said })}`}`
}

/** That a set is judged, and how many are not, or what there is to say of the next round.
 *  @param {number} open
 *  @param {string} next */
export function judgedOf(open, next) {
  const more = open ? tr("{n} more to judge.", { n: open }) : next
  return `${tr("This set is judged.")}${more && ` ${more}`}`
}

/** What a question's answer says, or "" if it has none.
 *  @param {Question} question */
export function saidOf({ kind, answer }) {
  if (answer === undefined) return ""
  if (typeof answer === "number") return tr(kind === "star" ? "{n} stars" : "chosen", { n: answer })
  return tr(SAID[answer])
}

/** What pane i of a question is called.
 *  @param {Question} question
 *  @param {number} i
 *  @param {number} count of panes
 *  @returns {Label} */
export function labelOf({ kind, answer }, i, count) {
  if (kind === "star") return { badge: "", text: tr("The candidate to rate") }
  if (kind === "thumb")
    return {
      badge: answer === UP || answer === DOWN ? thumb(answer) : "",
      text: tr("The candidate to judge")
    }
  const several = count > 2 || kind === "best"
  const name = several ? candidateOf(i) : tr(["Left candidate", "Right candidate"][i])
  return { badge: String(i + 1), text: `${name}: ${tr("choose it with {n}", { n: i + 1 })}` }
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
      badge: answer === SKIP ? tr(SAID[SKIP]) : thumb(answer),
      text: `${candidateOf(place)}: ${tr(SAID[answer])}`
    }
  }
  const { won, lost } = record(judged, count)[candidate]
  return {
    badge: `${won} ✓  ${lost} ✗`,
    text: `${candidateOf(place)}: ${tr("preferred {won} times, rejected {lost} times", { won, lost })}`
  }
}

/** The candidates of a judged set, the most preferred first.
 *  @param {Judgement | undefined} judged
 *  @param {number} count of candidates */
export function byWins(judged, count) {
  const score = standing(judged, count)
  return score.map((_, i) => i).sort((a, b) => score[b] - score[a])
}
