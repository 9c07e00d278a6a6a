// What was seen in the last minutes: the lines of GET /v1/map (docs/map.md), kept as they came, and the time that is looked at.

const KEPT_SECONDS = 300
const KEPT_BYTES = 64e6 // of all pictures together; beyond it the oldest go
const PARSED = 32 // pictures that are kept ready

/** The lines of the stream. Raises Refusal where it ends. */
async function* linesOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ""
  for (;;) {
    const {done, value} = await reader.read().catch(error => {
      if (error.name === "AbortError") throw error
      throw new Refusal("The connection to the server broke.")
    })
    if (done) throw new Refusal("The server ended the stream.")
    const lines = (rest + value).split("\n")
    rest = lines.pop()
    yield* lines
  }
}

/** Pictures of engines, each {at, text}, the oldest first. Times are seconds on the clock of the server's engines. */
class Pictures {
  constructor() {
    this.engines = new Map() // name: pictures
    this.newest = 0
    this._bytes = 0
    this._parsed = new Map() // text: line
  }

  /** A line came. Returns it, parsed. */
  add(text) {
    const line = JSON.parse(text)
    const pictures = this.engines.get(line.engine) ?? this.engines.set(line.engine, []).get(line.engine)
    const last = pictures.at(-1)
    this.newest = Math.max(this.newest, line.now)
    if (line.unchanged && last?.role === line.role && last?.state === line.state) return line
    if (line.unchanged && last) { // what it drew last, in another state
      text = JSON.stringify({...this._line(last.text), role: line.role, state: line.state, now: line.now, map: this._line(last.text).map})
    }
    pictures.push({at: line.now, text, role: line.role, state: line.state})
    this._bytes += text.length
    this._forget()
    return line
  }

  _forget() {
    const lists = [...this.engines.values()]
    for (;;) {
      const old = lists.filter(list => list.length > 1).sort((a, b) => a[1].at - b[1].at)[0]
      if (!old || (old[1].at > this.newest - KEPT_SECONDS && this._bytes <= KEPT_BYTES)) return
      this._bytes -= old.shift().text.length
    }
  }

  /** From when on there are pictures. */
  get oldest() {
    return Math.min(this.newest, ...[...this.engines.values()].map(list => list[0].at))
  }

  /** The line of this engine that held at that time, or null. */
  of(engine, at) {
    const list = this.engines.get(engine) ?? []
    const index = after(list, at) - 1
    return index < 0 ? null : this._line(list[index].text)
  }

  _line(text) {
    const line = this._parsed.get(text) ?? JSON.parse(text)
    this._parsed.delete(text)
    this._parsed.set(text, line)
    if (this._parsed.size > PARSED) this._parsed.delete(this._parsed.keys().next().value)
    return line
  }

  /** The time of the next picture of any engine after (or before) that time; null if there is none. */
  next(at, forth) {
    const times = [...this.engines.values()].map(list => {
      const index = forth ? after(list, at) : after(list, at - 1e-6) - 1
      return list[index]?.at
    }).filter(time => time !== undefined)
    return times.length ? (forth ? Math.min(...times) : Math.max(...times)) : null
  }
}

/** Index of the first of a list that comes after that time. */
function after(list, time, field = "at") {
  let low = 0, high = list.length
  while (low < high) {
    const middle = (low + high) >> 1
    if (list[middle][field] <= time) low = middle + 1
    else high = middle
  }
  return low
}
