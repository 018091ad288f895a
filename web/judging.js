// What to ask about a set of N candidates in each mode, and the judgement that the answers make.
//
// A log holds the answers of one set as they were given, newest last, so that undo takes them back one by one:
//   {pairs: [[a, b, verdict], ...], best: [candidate | BAD | SKIP, ...], stars: [[candidate, 1..5 | SKIP], ...],
//    thumbs: [[candidate, UP | DOWN | SKIP], ...]}
// Candidates are numbers from 0. Of several answers to one question the newest counts.

export const FIRST = ">", SECOND = "<", TIE = "=", SKIP = "?", BAD = "x", UP = "+", DOWN = "-"

export const MODES = {
  pairs: { label: "all pairs", list: "pairs" },
  ranking: { label: "ranking", list: "pairs" },
  best: { label: "best of N", list: "best" },
  stars: { label: "stars", list: "stars" },
  thumbs: { label: "thumbs", list: "thumbs" }
}
/** The modes that ask about one candidate at a time, and the kind of their questions. */
const SINGLE = { stars: "star", thumbs: "thumb" }

const MIRRORED = { [FIRST]: SECOND, [SECOND]: FIRST }

/** 32-bit FNV-1a hash of a text. */
function hash(text) {
  let h = 0x811c9dc5
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

/** The items in an order that looks random and is the same for the same key. */
export function shuffled(items, key) {
  return items.map((item, i) => [hash(`${key} ${i}`), i, item]).sort((p, q) => p[0] - q[0] || p[1] - q[1]).map((x) => x[2])
}

/** Whether b is shown on the left of the pair (a, b). */
export function mirrored(a, b, key) {
  return hash(`${key} side ${a} ${b}`) % 2 === 1
}

const ascending = (p, q) => p - q

const range = (n) => Array.from({ length: n }, (_, i) => i)

/** The newest verdict for every pair in a log, asked by verdict(a, b). */
function verdicts(log) {
  const found = new Map()
  for (const [a, b, verdict] of log.pairs ?? []) {
    found.set(`${a} ${b}`, verdict)
    found.set(`${b} ${a}`, MIRRORED[verdict] ?? verdict)
  }
  return (a, b) => found.get(`${a} ${b}`)
}

/** Merge sort of the candidates by the verdicts there are. Levels are lists of candidates that no answer tells apart.
 *
 *  {questions, levels, todo}: the comparisons made, in order, and after them the next one if a verdict is missing; the
 *  levels, best first, once none is; the most comparisons that may still come.
 */
function mergeSort(n, verdict, key) {
  let runs = shuffled(range(n), key).map((candidate) => [[candidate]])
  const questions = []
  while (runs.length > 1) {
    const merged = []
    for (let r = 0; r < runs.length; r += 2) {
      const left = runs[r], right = runs[r + 1] ?? []
      const run = []
      let i = 0, j = 0
      while (i < left.length && j < right.length) {
        const a = left[i][0], b = right[j][0]
        const answer = verdict(a, b)
        questions.push({ kind: "pair", a, b, answer })
        if (answer === undefined) {
          const here = left.length - i + right.length - j - 1
          return { questions, levels: null, todo: here + mostComparisons([...merged, left.concat(right)], runs.slice(r + 2)) }
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

/** The most comparisons that merging `done` runs of this pass, the rest of the pass and all later passes can take. */
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

/** The questions about a set: {questions: [{kind, ..., answer}], todo}.
 *
 *  kind "pair" has a and b, "best" has the candidates in the order to show, "star" and "thumb" have the candidate. An
 *  answer that is undefined is still to come. todo counts what is still to ask, at most.
 */
export function ask(mode, n, log, key) {
  if (mode === "ranking") {
    const { questions, todo } = mergeSort(n, verdicts(log), key)
    return { questions, todo }
  }
  let questions
  if (mode === "best") {
    questions = [{ kind: "best", candidates: shuffled(range(n), key), answer: log.best?.at(-1) }]
  } else if (mode in SINGLE) {
    const given = new Map(log[mode])
    questions = shuffled(range(n), key).map((candidate) => ({ kind: SINGLE[mode], candidate, answer: given.get(candidate) }))
  } else {
    const verdict = verdicts(log)
    const pairs = range(n).flatMap((a) => range(n).slice(a + 1).map((b) => [a, b]))
    questions = shuffled(pairs, key).map(([a, b]) => ({ kind: "pair", a, b, answer: verdict(a, b) }))
  }
  return { questions, todo: questions.filter((question) => question.answer === undefined).length }
}

/** The log with one more answer. */
export function answered(mode, log, question, answer) {
  const { list } = MODES[mode]
  const entry = question.kind === "pair" ? [question.a, question.b, answer]
    : question.kind === "best" ? answer : [question.candidate, answer]
  return { ...log, [list]: [...(log[list] ?? []), entry] }
}

/** The log without its newest answer in this mode, or null if there is none. */
export function undone(mode, log) {
  const { list } = MODES[mode]
  return log[list]?.length ? { ...log, [list]: log[list].slice(0, -1) } : null
}

/** Which question the newest answer of this mode answered, or -1. */
export function newest(mode, questions, log) {
  const entry = log[MODES[mode].list]?.at(-1)
  if (entry === undefined) return -1
  return questions.findIndex((q) => q.kind === "best" || ("candidate" in q ? q.candidate === entry[0]
    : (q.a === entry[0] && q.b === entry[1]) || (q.a === entry[1] && q.b === entry[0])))
}

/** What the answers of a log imply, in the form that the node reads: pairs and ties, a ranking, scores, or thumbs. */
export function judgement(mode, n, log, key) {
  const { questions, todo } = ask(mode, n, log, key)
  const made = todo ? { open: true } : {}
  const bad = new Set()
  if (mode === "best") {
    const best = questions[0].answer
    if (best === BAD) Object.assign(made, { ranking: [range(n)], bad: range(n) })
    else if (best === SKIP || best === undefined) made.pairs = []
    else made.ranking = [best, oneOrAll(range(n).filter((candidate) => candidate !== best))]
    return { ...made, log }
  }
  if (mode === "stars") {
    const stars = new Map(questions.map((question) => [question.candidate, question.answer]))
    made.scores = range(n).map((candidate) => (Number.isInteger(stars.get(candidate)) ? stars.get(candidate) : null))
    return { ...made, log }
  }
  if (mode === "thumbs") {
    const those = (thumb) => questions.filter(({ answer }) => answer === thumb).map(({ candidate }) => candidate)
    return { ...made, good: those(UP).sort(ascending), bad: those(DOWN).sort(ascending), log }
  }
  const given = questions.filter((question) => question.answer !== undefined)
  for (const { a, b, answer } of given) if (answer === BAD) bad.add(a).add(b)
  if (mode === "ranking" && !todo && given.every((question) => question.answer !== SKIP)) {
    made.ranking = mergeSort(n, verdicts(log), key).levels.map(oneOrAll)
  } else {
    Object.assign(made, mode === "ranking" ? closure(n, given) : direct(given))
  }
  if (bad.size) made.bad = [...bad].sort(ascending)
  return { ...made, log }
}

const oneOrAll = (level) => (level.length === 1 ? level[0] : level)

function direct(given) {
  const pairs = given.filter((q) => q.answer === FIRST || q.answer === SECOND)
    .map((q) => (q.answer === FIRST ? [q.a, q.b] : [q.b, q.a]))
  const ties = given.filter((q) => q.answer === TIE || q.answer === BAD).map((q) => [q.a, q.b])
  return { pairs, ...(ties.length ? { ties } : {}) }
}

/** All pairs and ties that follow from some by transitivity. */
function closure(n, given) {
  const { pairs, ties = [] } = direct(given)
  const atLeast = range(n).map((i) => range(n).map((j) => i === j))
  const better = range(n).map(() => range(n).map(() => false))
  for (const [a, b] of ties) atLeast[a][b] = atLeast[b][a] = true
  for (const [w, l] of pairs) atLeast[w][l] = better[w][l] = true
  for (const k of range(n)) for (const i of range(n)) for (const j of range(n)) {
    if (atLeast[i][k] && atLeast[k][j]) {
      better[i][j] ||= better[i][k] || better[k][j]
      atLeast[i][j] = true
    }
  }
  const all = range(n).flatMap((a) => range(n).map((b) => [a, b]))
  const tied = all.filter(([a, b]) => a < b && atLeast[a][b] && atLeast[b][a])
  return { pairs: all.filter(([a, b]) => better[a][b]), ...(tied.length ? { ties: tied } : {}) }
}

/** The log of a judgement, made up from what it says if it was written by something else. */
export function logOf(judged) {
  if (!judged) return {}
  if (judged.log) return judged.log
  const pairs = []
  const levels = (judged.ranking ?? []).map((level) => [level].flat())
  levels.forEach((level, i) => {
    for (const a of level) for (const b of levels.slice(i + 1).flat()) pairs.push([a, b, FIRST])
    level.forEach((a, k) => { for (const b of level.slice(k + 1)) pairs.push([a, b, TIE]) })
  })
  for (const [a, b] of judged.ties ?? []) pairs.push([a, b, TIE])
  for (const [w, l] of judged.pairs ?? []) pairs.push([w, l, FIRST])
  const stars = (judged.scores ?? []).map((score, i) => [i, score]).filter(([, s]) => Number.isInteger(s) && s >= 1 && s <= 5)
  const thumbs = [...(judged.good ?? []).map((good) => [good, UP]), ...(judged.bad ?? []).map((bad) => [bad, DOWN])]
  return Object.fromEntries(Object.entries({ pairs, stars, thumbs }).filter(([, list]) => list.length))
}

/** {won, lost} of every candidate in a judgement's strict pairs. */
export function record(judged, n) {
  const found = range(n).map(() => ({ won: 0, lost: 0 }))
  const levels = (judged?.ranking ?? []).map((level) => [level].flat())
  const scores = judged?.scores ?? []
  const pairs = [...(judged?.pairs ?? []),
    ...levels.flatMap((level, i) => level.flatMap((w) => levels.slice(i + 1).flat().map((l) => [w, l]))),
    ...range(scores.length).flatMap((w) => range(scores.length).map((l) => [w, l]))
      .filter(([w, l]) => scores[w] !== null && scores[l] !== null && scores[w] > scores[l]),
    ...(judged?.good ?? []).flatMap((w) => (judged.bad ?? []).map((l) => [w, l]))]
  for (const [w, l] of pairs) {
    if (!found[w] || !found[l]) continue // picks of a hand that miscounted; the run says so
    found[w].won++
    found[l].lost++
  }
  return found
}
