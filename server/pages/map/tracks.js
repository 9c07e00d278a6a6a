// What becomes of requests and blocks from picture to picture: the way of each request through time, and who was in each square.

const CELL = {FREE: 0, CACHED: 1, USED: 2, SAVING: 3, LOADING: 4}

/** The squares of a map, one by one: state, set of owners, place in their tables, blocks in use, blocks cached. */
function cellsOf(drawn) {
  const {runs, per_cell: perCell, blocks, owners} = drawn.cells
  const count = Math.ceil(blocks / perCell)
  const cells = {count, perCell, blocks, states: new Uint8Array(count), sets: new Uint16Array(count), places: new Uint32Array(count), active: new Uint32Array(count), cached: new Uint32Array(count), owners}
  let at = 0
  for (let run = 0; run < runs.length; run += 6) {
    const [length, state, set, place, active, cached] = runs.slice(run, run + 6)
    for (let each = 0; each < length; each++, at++) {
      cells.states[at] = state
      cells.sets[at] = set
      cells.places[at] = set ? place + each * perCell : 0
      cells.active[at] = active
      cells.cached[at] = cached
    }
  }
  return cells
}

/** The ids of the requests that a square belongs to, as far as they are told. */
const idsAt = (drawn, cells, index) => cells.owners[cells.sets[index]].slice(1).map(row => drawn.requests[row].name)

/** Requests over time, and stays in squares. */
class Tracks {
  constructor() {
    // `info` is the newest row of a map; `prompts` are chunks of its prompt, each in a step
    this.requests = new Map() // engine and id: {id, engine, info, tenant, from, number, points, prompts}
    this.steps = new Map() // engine: [{number, ended, seconds, prompt_tokens, decodes}]
    this._stays = new Map() // engine: a list for each square of {id, place, from, to}
    this._drawn = new Map() // engine: when it drew last
    this._numbers = new Map() // id: number
    this._next = 0
  }

  /** An engine drew a new map. */
  add(engine, drawn) {
    for (const request of drawn.requests) this._point(engine, request, drawn.at)
    const steps = this.steps.get(engine) ?? this.steps.set(engine, []).get(engine)
    for (const step of drawn.steps) {
      steps.push(step)
      for (const [id, start, tokens] of step.prompts) this._track(engine, id, step.ended - step.seconds).prompts.push({from: step.ended - step.seconds, to: step.ended, start, tokens})
    }
    this._stay(engine, drawn)
    this._forget(drawn.at - KEPT_SECONDS)
  }

  /** The engine is gone, and with it what it held. */
  ended(engine) {
    this._stays.delete(engine)
  }

  _track(engine, id, from) {
    const key = `${engine} ${id}` // one that is handed over is in two engines, one after the other
    return this.requests.get(key) ?? this.requests.set(key, {id, engine, info: null, tenant: "", from, number: this.numberOf(id), points: [], prompts: []}).get(key)
  }

  /** Requests are numbered as they are first seen: their colours follow from it. */
  numberOf(id) {
    return this._numbers.get(id) ?? this._numbers.set(id, this._next++).get(id)
  }

  _point(engine, request, at) {
    const track = this._track(engine, request.name, request.queued)
    track.tenant = request.tenant
    track.from = Math.min(track.from, request.queued)
    track.info = request
    const {state, computed, output} = request, last = track.points.at(-1)
    if (last?.state === state && last.computed === computed && last.output === output && track.points.at(-2)?.state === state) last.at = at
    else track.points.push({at, state, computed, output})
  }

  _stay(engine, drawn) {
    const cells = cellsOf(drawn)
    let stays = this._stays.get(engine)
    if (stays?.length !== cells.count) this._stays.set(engine, stays = Array.from({length: cells.count}, () => []))
    for (let index = 0; index < cells.count; index++) {
      if (!cells.sets[index]) continue
      const [id] = idsAt(drawn, cells, index), list = stays[index], last = list.at(-1)
      if (id === undefined) continue
      if (last?.id === id && last.to === this._drawn.get(engine)) last.to = drawn.at
      else list.push({id, place: cells.places[index], from: drawn.at, to: drawn.at})
    }
    this._drawn.set(engine, drawn.at)
  }

  /** The steps of an engine that ended after that time. */
  stepsSince(engine, time) {
    const steps = this.steps.get(engine) ?? []
    return steps.slice(after(steps, time, "ended"))
  }

  /** Who was in a square before that time, last of all. */
  lastStay(engine, index, at) {
    return this._stays.get(engine)?.[index]?.findLast(stay => stay.from <= at) ?? null
  }

  _forget(before) {
    for (const [key, track] of this.requests) {
      while (track.points.length > 1 && track.points[1].at < before) track.points.shift()
      if (Math.max(track.points.at(-1)?.at ?? 0, track.prompts.at(-1)?.to ?? 0) < before) {
        this.requests.delete(key)
        this._numbers.delete(track.id)
      }
    }
    for (const steps of this.steps.values()) steps.splice(0, steps.findIndex(step => step.ended >= before))
    for (const stays of this._stays.values()) for (const list of stays) while (list.length && list[0].to < before) list.shift()
  }
}
