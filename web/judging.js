// What to ask about a set of N candidates in each mode, and the answers so far.
//
// A log holds the answers of one set as they were given, newest last, so that undo takes them back one by
// one. Candidates are numbers from 0. Of several answers to one question the newest counts.

export const FIRST = ">"
export const SECOND = "<"
export const TIE = "="
export const SKIP = "?"
export const BAD = "x"
export const UP = "+"
export const DOWN = "-"

/** @typedef {">" | "<" | "=" | "?" | "x"} Verdict on a pair: FIRST, SECOND, TIE, SKIP or BAD */
/** @typedef {number | "?" | "x"} Best the best candidate, SKIP or BAD */
/** @typedef {number | "?"} Star 1 to 5, or SKIP */
/** @typedef {"+" | "-" | "?"} Thumb UP, DOWN or SKIP */
/** @typedef {Verdict | Best | Star | Thumb} Answer */

/** @typedef {{ kind: "pair", a: number, b: number, answer?: Verdict }} PairQuestion */
/** @typedef {{ kind: "best", candidates: number[], answer?: Best }} BestQuestion in the order to show */
/** @typedef {{ kind: "star" | "thumb", candidate: number, answer?: Star | Thumb }} SingleQuestion */
/** @typedef {PairQuestion | BestQuestion | SingleQuestion} Question an undefined answer is still to come */
/** @typedef {Question["kind"]} Kind */

/**
 * @typedef {object} Log
 * @property {[a: number, b: number, verdict: Verdict][]} [pairs]
 * @property {Best[]} [best]
 * @property {[candidate: number, star: Star][]} [stars]
 * @property {[candidate: number, thumb: Thumb][]} [thumbs]
 */

/** @typedef {[a: number, b: number]} Pair two candidates */
/** @typedef {"pairs" | "ranking" | "best" | "stars" | "thumbs"} Mode */
/** @typedef {(a: number, b: number) => Verdict | undefined} Verdicts */

/** @type {Record<Mode, { label: string, list: keyof Log }>} */
export const MODES = {
  pairs: { label: "all pairs", list: "pairs" },
  ranking: { label: "ranking", list: "pairs" },
  best: { label: "best of N", list: "best" },
  stars: { label: "stars", list: "stars" },
  thumbs: { label: "thumbs", list: "thumbs" }
}
/** The modes that ask about one candidate at a time, and the kind of their questions.
 *  @type {Record<"stars" | "thumbs", "star" | "thumb">} */
const SINGLE = { stars: "star", thumbs: "thumb" }

/** @type {{ [verdict in Verdict]?: Verdict }} */
const MIRRORED = { [FIRST]: SECOND, [SECOND]: FIRST }

/** 32-bit FNV-1a hash of a text.
 *  @param {string} text */
function hash(text) {
  let h = 0x811c9dc5
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

/** The items in an order that looks random and is the same for the same key.
 *  @template T
 *  @param {T[]} items
 *  @param {string} key
 *  @returns {T[]} */
export function shuffled(items, key) {
  return items
    .map((item, i) => ({ rank: hash(`${key} ${i}`), i, item }))
    .sort((p, q) => p.rank - q.rank || p.i - q.i)
    .map(({ item }) => item)
}

/** Whether b is shown on the left of the pair (a, b).
 *  @param {number} a
 *  @param {number} b
 *  @param {string} key */
function mirrored(a, b, key) {
  return hash(`${key} side ${a} ${b}`) % 2 === 1
}

/** @type {(n: number) => number[]} */
export const range = (n) => Array.from({ length: n }, (_, i) => i)

/** All pairs of one of each.
 *  @param {number[]} some
 *  @param {number[]} others
 *  @returns {Pair[]} */
export function product(some, others) {
  return some.flatMap((a) => others.map((b) => /** @type {Pair} */ ([a, b])))
}

/** @type {(n: number) => Pair[]} */
export const couples = (n) => product(range(n), range(n))

/** The newest verdict for every pair in a log, asked by verdict(a, b).
 *  @param {Log} log
 *  @returns {Verdicts} */
export function verdicts(log) {
  /** @type {Map<string, Verdict>} */
  const found = new Map()
  for (const [a, b, verdict] of log.pairs ?? []) {
    found.set(`${a} ${b}`, verdict)
    found.set(`${b} ${a}`, MIRRORED[verdict] ?? verdict)
  }
  return (a, b) => found.get(`${a} ${b}`)
}

/** Merge sort of the candidates by the verdicts there are. Levels are lists of candidates that no answer
 *  tells apart.
 *
 *  {questions, levels, todo}: the comparisons made, in order, and after them the next one if a verdict is
 *  missing; the levels, best first, once none is; the most comparisons that may still come.
 *
 *  @param {number} n
 *  @param {Verdicts} verdict
 *  @param {string} key
 *  @returns {{ questions: PairQuestion[], levels: number[][] | null, todo: number }}
 */
export function mergeSort(n, verdict, key) {
  let runs = shuffled(range(n), key).map((candidate) => [[candidate]])
  /** @type {PairQuestion[]} */
  const questions = []
  while (runs.length > 1) {
    const merged = []
    for (let r = 0; r < runs.length; r += 2) {
      const left = runs[r]
      const right = runs[r + 1] ?? []
      const run = []
      let i = 0
      let j = 0
      while (i < left.length && j < right.length) {
        const a = left[i][0]
        const b = right[j][0]
        const answer = verdict(a, b)
        questions.push({ kind: "pair", a, b, answer })
        if (answer === undefined) {
          const here = left.length - i + right.length - j - 1
          return {
            questions,
            levels: null,
            todo: here + mostComparisons([...merged, left.concat(right)], runs.slice(r + 2))
          }
        }
        if (answer === FIRST) run.push(left[i++])
        else if (answer === SECOND) run.push(right[j++])
        else run.push([...left[i++], ...right[j++]])
      }
      merged.push([...run, ...left.slice(i), ...right.slice(j)])
    }
    runs = merged
  }
  return { questions, levels: runs[0] ?? [], todo: 0 }
}

/** The most comparisons that merging `done` runs of this pass, the rest of the pass and all later passes can
 *  take.
 *  @param {number[][][]} done
 *  @param {number[][][]} rest */
function mostComparisons(done, rest) {
  let count = 0
  const sizes = done.map((run) => run.length)
  for (let r = 0; r < rest.length; r += 2) {
    const pair = [rest[r].length, rest[r + 1]?.length ?? 0]
    if (pair[1]) count += pair[0] + pair[1] - 1
    sizes.push(pair[0] + pair[1])
  }
  for (let runs = sizes; runs.length > 1; ) {
    const next = []
    for (let r = 0; r < runs.length; r += 2) {
      if (r + 1 < runs.length) count += runs[r] + runs[r + 1] - 1
      next.push(runs[r] + (runs[r + 1] ?? 0))
    }
    runs = next
  }
  return count
}

/** The questions about a set of n candidates. todo counts what is still to ask, at most.
 *  @param {Mode} mode
 *  @param {number} n
 *  @param {Log} log
 *  @param {string} key of the order in which candidates come
 *  @returns {{ questions: Question[], todo: number }} */
export function ask(mode, n, log, key) {
  if (mode === "ranking") {
    const { questions, todo } = mergeSort(n, verdicts(log), key)
    return { questions, todo }
  }
  /** @type {Question[]} */
  let questions
  if (mode === "best") {
    questions = [{ kind: "best", candidates: shuffled(range(n), key), answer: log.best?.at(-1) }]
  } else if (mode === "stars" || mode === "thumbs") {
    /** @type {[number, Star | Thumb][] | undefined} */
    const answers = log[mode]
    const given = new Map(answers)
    questions = shuffled(range(n), key).map((candidate) => ({
      kind: SINGLE[mode],
      candidate,
      answer: given.get(candidate)
    }))
  } else {
    const verdict = verdicts(log)
    const pairs = couples(n).filter(([a, b]) => a < b)
    questions = shuffled(pairs, key).map(([a, b]) => ({ kind: "pair", a, b, answer: verdict(a, b) }))
  }
  return { questions, todo: questions.filter((question) => question.answer === undefined).length }
}

/** The log with one more answer.
 *  @param {Mode} mode
 *  @param {Log} log
 *  @param {Question} question
 *  @param {Answer} answer
 *  @returns {Log} */
export function answered(mode, log, question, answer) {
  const { list } = MODES[mode]
  const entry =
    question.kind === "pair"
      ? [question.a, question.b, answer]
      : question.kind === "best"
        ? answer
        : [question.candidate, answer]
  return { ...log, [list]: [...(log[list] ?? []), entry] }
}

/** The log without its newest answer in this mode, or null if there is none.
 *  @param {Mode} mode
 *  @param {Log} log
 *  @returns {Log | null} */
export function undone(mode, log) {
  const { list } = MODES[mode]
  return log[list]?.length ? { ...log, [list]: log[list].slice(0, -1) } : null
}

/** Which question the newest answer of this mode answered, or -1.
 *  @param {Mode} mode
 *  @param {Question[]} questions
 *  @param {Log} log */
export function newest(mode, questions, log) {
  const entry = log[MODES[mode].list]?.at(-1)
  if (entry === undefined) return -1
  const [first, second] = [entry].flat()
  return questions.findIndex(
    (q) =>
      q.kind === "best" ||
      ("candidate" in q
        ? q.candidate === first
        : (q.a === first && q.b === second) || (q.a === second && q.b === first))
  )
}

/** Whether two questions ask the same.
 *  @param {Question} question
 *  @param {Question | undefined} other */
export function isSame(question, other) {
  if (question.kind === "pair")
    return other?.kind === "pair" && question.a === other.a && question.b === other.b
  if ("candidate" in question)
    return other !== undefined && "candidate" in other && question.candidate === other.candidate
  return other?.kind === "best"
}

/** The candidates of a question, in the order of their panes.
 *  @param {Question} question
 *  @param {string} key of which side each is on */
export function candidatesOf(question, key) {
  if (question.kind === "best") return question.candidates
  if ("candidate" in question) return [question.candidate]
  const pair = [question.a, question.b]
  return mirrored(question.a, question.b, key) ? pair.reverse() : pair
}

/** The candidate that a question's answer prefers, if it prefers one.
 *  @param {Question} question */
export function winnerOf(question) {
  if (question.kind === "best") return question.answer
  if (question.kind !== "pair") return undefined
  return question.answer === FIRST ? question.a : question.answer === SECOND ? question.b : undefined
}
