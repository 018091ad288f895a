// The judgement that the answers about a set make, in the form that the node reads; and the way back.

import {
  ask,
  BAD,
  couples,
  DOWN,
  FIRST,
  mergeSort,
  product,
  range,
  SECOND,
  SKIP,
  TIE,
  UP,
  verdicts
} from "./judging.js"

/** @typedef {import("./judging.js").Log} Log */
/** @typedef {import("./judging.js").Mode} Mode */
/** @typedef {import("./judging.js").Pair} Pair of a strict pair the winner and the loser */
/** @typedef {import("./judging.js").PairQuestion} PairQuestion */
/** @typedef {import("./judging.js").Star} Star */
/** @typedef {import("./judging.js").Thumb} Thumb */
/** @typedef {import("./judging.js").Verdict} Verdict */
/** @typedef {number | number[]} Level one candidate, or several that tie */

/**
 * @typedef {object} Judgement
 * @property {boolean} [open] whether questions are left
 * @property {Pair[]} [pairs]
 * @property {Pair[]} [ties]
 * @property {Level[]} [ranking] best first
 * @property {(number | null)[]} [scores] of each candidate
 * @property {number[]} [good]
 * @property {number[]} [bad]
 * @property {Log} [log]
 */

/** @type {(p: number, q: number) => number} */
const ascending = (p, q) => p - q

/** @type {(score: number | null, other: number | null) => boolean} */
const isMore = (score, other) => score !== null && other !== null && score > other

/** What the answers of a log imply: pairs and ties, a ranking, scores, or thumbs.
 *  @param {Mode} mode
 *  @param {number} n
 *  @param {Log} log
 *  @param {string} key
 *  @returns {Judgement} */
export function judgement(mode, n, log, key) {
  const { questions, todo } = ask(mode, n, log, key)
  /** @type {Judgement} */
  const made = todo ? { open: true } : {}
  if (mode === "best") {
    const best = log.best?.at(-1)
    if (best === BAD) Object.assign(made, { ranking: [range(n)], bad: range(n) })
    else if (best === SKIP || best === undefined) made.pairs = []
    else made.ranking = [best, oneOrAll(range(n).filter((candidate) => candidate !== best))]
    return { ...made, log }
  }
  if (mode === "stars") {
    const stars = new Map(log.stars)
    made.scores = range(n).map((candidate) => {
      const star = stars.get(candidate)
      return typeof star === "number" && Number.isInteger(star) ? star : null
    })
    return { ...made, log }
  }
  if (mode === "thumbs") {
    const singles = questions.filter((question) => "candidate" in question)
    /** @type {(thumb: Thumb) => number[]} */
    const those = (thumb) =>
      singles.filter(({ answer }) => answer === thumb).map(({ candidate }) => candidate)
    return { ...made, good: those(UP).sort(ascending), bad: those(DOWN).sort(ascending), log }
  }
  const pairs = questions.filter((question) => question.kind === "pair")
  const given = pairs.filter((question) => question.answer !== undefined)
  const bad = new Set()
  for (const { a, b, answer } of given) if (answer === BAD) bad.add(a).add(b)
  if (mode === "ranking" && !todo && given.every((question) => question.answer !== SKIP)) {
    made.ranking = mergeSort(n, verdicts(log), key).levels?.map(oneOrAll)
  } else {
    Object.assign(made, mode === "ranking" ? closure(n, given) : direct(given))
  }
  if (bad.size) made.bad = [...bad].sort(ascending)
  return { ...made, log }
}

/** @type {(level: number[]) => Level} */
const oneOrAll = (level) => (level.length === 1 ? level[0] : level)

/** The pairs and ties that were said.
 *  @param {PairQuestion[]} given
 *  @returns {{ pairs: Pair[], ties?: Pair[] }} */
function direct(given) {
  const strict = given.filter((q) => q.answer === FIRST || q.answer === SECOND)
  /** @type {Pair[]} */
  const pairs = strict.map((q) => (q.answer === FIRST ? [q.a, q.b] : [q.b, q.a]))
  const tied = given.filter((q) => q.answer === TIE || q.answer === BAD)
  /** @type {Pair[]} */
  const ties = tied.map((q) => [q.a, q.b])
  return { pairs, ...(ties.length ? { ties } : {}) }
}

/** All pairs and ties that follow from some by transitivity.
 *  @param {number} n
 *  @param {PairQuestion[]} given
 *  @returns {{ pairs: Pair[], ties?: Pair[] }} */
function closure(n, given) {
  const { pairs, ties = [] } = direct(given)
  const atLeast = range(n).map((i) => range(n).map((j) => i === j))
  const better = range(n).map(() => range(n).map(() => false))
  for (const [a, b] of ties) atLeast[a][b] = atLeast[b][a] = true
  for (const [w, l] of pairs) atLeast[w][l] = better[w][l] = true
  const all = couples(n)
  for (const k of range(n)) {
    for (const [i, j] of all) {
      if (!atLeast[i][k] || !atLeast[k][j]) continue
      better[i][j] ||= better[i][k] || better[k][j]
      atLeast[i][j] = true
    }
  }
  const tied = all.filter(([a, b]) => a < b && atLeast[a][b] && atLeast[b][a])
  return { pairs: all.filter(([a, b]) => better[a][b]), ...(tied.length ? { ties: tied } : {}) }
}

/** The log of a judgement, made up from what it says if it was written by something else.
 *  @param {Judgement | undefined} judged
 *  @returns {Log} */
export function logOf(judged) {
  if (!judged) return {}
  if (judged.log) return judged.log
  /** @type {[number, number, Verdict][]} */
  const pairs = []
  const levels = (judged.ranking ?? []).map((level) => [level].flat())
  levels.forEach((level, i) => {
    for (const a of level) for (const b of levels.slice(i + 1).flat()) pairs.push([a, b, FIRST])
    level.forEach((a, k) => {
      for (const b of level.slice(k + 1)) pairs.push([a, b, TIE])
    })
  })
  for (const [a, b] of judged.ties ?? []) pairs.push([a, b, TIE])
  for (const [w, l] of judged.pairs ?? []) pairs.push([w, l, FIRST])
  /** @type {[number, Star][]} */
  const stars = []
  judged.scores?.forEach((score, i) => {
    if (score !== null && Number.isInteger(score) && score >= 1 && score <= 5) stars.push([i, score])
  })
  /** @type {[number, Thumb][]} */
  const thumbs = [
    ...(judged.good ?? []).map((good) => /** @type {[number, Thumb]} */ ([good, UP])),
    ...(judged.bad ?? []).map((bad) => /** @type {[number, Thumb]} */ ([bad, DOWN]))
  ]
  return Object.fromEntries(Object.entries({ pairs, stars, thumbs }).filter(([, list]) => list.length))
}

/** {won, lost} of every candidate in a judgement's strict pairs.
 *  @param {Judgement | undefined} judged
 *  @param {number} n */
export function record(judged, n) {
  const found = range(n).map(() => ({ won: 0, lost: 0 }))
  const levels = (judged?.ranking ?? []).map((level) => [level].flat())
  const scores = judged?.scores ?? []
  const pairs = [
    ...(judged?.pairs ?? []),
    ...levels.flatMap((level, i) => product(level, levels.slice(i + 1).flat())),
    ...couples(scores.length).filter(([w, l]) => isMore(scores[w], scores[l])),
    ...product(judged?.good ?? [], judged?.bad ?? [])
  ]
  for (const [w, l] of pairs) {
    if (!found[w] || !found[l]) continue // picks of a hand that miscounted; the run says so
    found[w].won++
    found[l].lost++
  }
  return found
}

/** How many pairs each of n candidates wins more than it loses.
 *  @param {Judgement | undefined} judged
 *  @param {number} n
 *  @returns {number[]} */
export const standing = (judged, n) => record(judged, n).map(({ won, lost }) => won - lost)
