// What was said of a set, in words and marks.

import { standing } from "./judgement.js"
import { tr } from "./language.js"

/** @typedef {import("./judgement.js").Judgement} Judgement */

const MOST_PAIRS = 6 // in words

/** The candidates that a judgement prefers most: () where it prefers none.
 *  @param {Judgement} judged
 *  @param {number} count of candidates
 *  @returns {number[]} */
export function bestOf(judged, count) {
  if (judged.good) return judged.good
  const score = standing(judged, count)
  const most = Math.max(...score)
  return most > 0 ? score.flatMap((each, i) => (each === most ? [i] : [])) : []
}

/** @type {(candidates: number[]) => string} */
const named = (candidates) => candidates.map((candidate) => candidate + 1).join(", ")

/** Candidates from 1 on, the better before the worse.
 *  @param {Judgement} judged
 *  @returns {string[]} */
function orderOf({ ranking, scores, pairs = [], ties = [] }) {
  if (ranking)
    return [
      ranking
        .map((level) =>
          [level]
            .flat()
            .map((each) => each + 1)
            .join(" = ")
        )
        .join(" > ")
    ]
  const rated = (scores ?? []).flatMap((score, i) => (score === null ? [] : [{ score, i }]))
  if (rated.length)
    return [...rated]
      .sort((one, other) => other.score - one.score)
      .map(({ score, i }) => `${i + 1}: ${Number(score.toPrecision(3))} ★`)
  const all = [
    ...pairs.map(([winner, loser]) => `${winner + 1} > ${loser + 1}`),
    ...ties.map(([a, b]) => `${a + 1} = ${b + 1}`)
  ]
  return all.length > MOST_PAIRS ? [...all.slice(0, MOST_PAIRS), "…"] : all
}

/** A judgement in a few words.
 *  @param {Judgement} judged */
export function inWords(judged) {
  const { good, bad } = judged
  const said = good ? [] : orderOf(judged)
  if (good?.length) said.push(tr("thumbs up: {list}", { list: named(good) }))
  if (bad?.length) said.push(tr(good ? "thumbs down: {list}" : "bad: {list}", { list: named(bad) }))
  return said.join(", ") || tr("no preference")
}
