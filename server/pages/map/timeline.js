// Requests as rows over time, under the steps of their engine.

const STEP_ROW = 44, ROW = 24, MOST_ROWS = 24, AXIS = 22
const THIN = new Set(["waiting", "preempted"])

class Timeline {
  constructor(canvas, tracks, story, chosen) {
    this.canvas = canvas
    this._tracks = tracks
    this._story = story
    this._rows = []
    canvas.addEventListener("pointermove", event => this._point(event))
    canvas.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") story.hide() })
    canvas.addEventListener("click", event => { this._point(event); chosen(this._at(event)?.track?.id ?? null) })
  }

  /** @returns how many rows found no room */
  paint(engines, at, selected, paints) {
    const width = this.canvas.clientWidth, narrow = width < 560
    const label = narrow ? 84 : 190, seconds = narrow ? 12 : 30
    Object.assign(this, {_at0: at - seconds, _label: label, _scale: (width - label) / seconds, _time: at, _paints: paints})
    const {rows, hidden} = this._layout(engines, selected)
    const height = rows.reduce((sum, row) => sum + row.height, 0) + AXIS
    const context = this._context = sized(this.canvas, width, height)
    this._axis(width, height, seconds, narrow)
    let y = 0
    for (const row of rows) {
      Object.assign(row, {y})
      context.globalAlpha = selected === null || !row.track || row.track.id === selected ? 1 : .25
      if (row.track) this._request(row.track, y, narrow)
      else this._steps(row.engine, y, engines.length > 1, narrow)
      y += row.height
    }
    context.globalAlpha = 1
    this._rows = rows
    return hidden
  }

  _layout(engines, selected) {
    const rows = [], each = Math.max(4, Math.floor(MOST_ROWS / engines.length))
    let hidden = 0
    for (const engine of engines) {
      rows.push({engine, height: STEP_ROW})
      const all = [...this._tracks.requests.values()].filter(track => track.engine === engine && track.from <= this._time && lastSeen(track) >= this._at0)
      const worth = track => track.id === selected ? Infinity : Math.min(lastSeen(track), this._time - 1) // those that go on are alike
      const shown = all.sort((a, b) => worth(b) - worth(a) || a.number - b.number).slice(0, each).sort((a, b) => a.number - b.number)
      hidden += all.length - shown.length
      rows.push(...shown.map(track => ({engine, track, height: ROW})))
    }
    return {rows, hidden}
  }

  _x(time) {
    return this._label + Math.max(0, time - this._at0) * this._scale
  }

  _axis(width, height, seconds, narrow) {
    const context = this._context, paints = this._paints
    context.font = "11px system-ui, sans-serif"
    context.textBaseline = "middle"
    context.fillStyle = paints.soft
    context.strokeStyle = paints.line
    context.lineWidth = 1
    for (let ago = 0; ago <= seconds; ago += narrow ? 4 : 5) {
      const x = Math.round(this._x(this._time - ago)) - .5
      context.beginPath()
      context.moveTo(x, 0)
      context.lineTo(x, height - AXIS)
      context.stroke()
      context.textAlign = ago === 0 ? "right" : "center"
      context.fillText(ago ? `−${ago} s` : "now", x, height - AXIS / 2)
    }
    context.textAlign = "left"
  }

  _text(text, x, y, most, color, weight = "") {
    const context = this._context
    context.font = `${weight} 12px system-ui, sans-serif`
    context.fillStyle = color
    while (text.length > 3 && context.measureText(text).width > most) text = `${text.slice(0, -2)}…`
    context.fillText(text, x, y)
  }

  /** Each step as a bar as wide as it took; its height is its share of the largest that is seen. */
  _steps(engine, y, several, narrow) {
    const context = this._context, paints = this._paints
    const steps = this._tracks.stepsSince(engine, this._at0).filter(step => step.ended - step.seconds <= this._time)
    const most = Math.max(1, ...steps.map(step => step.prompt_tokens + step.decodes)), room = STEP_ROW - 12
    this._text(!several ? "steps" : narrow ? engine : `${engine}: steps`, 0, y + STEP_ROW / 2, this._label - 8, paints.soft, "600")
    for (const step of steps) {
      const from = this._x(step.ended - step.seconds), to = this._x(Math.min(this._time, step.ended))
      const width = Math.max(1, to - from - (to - from > 4 ? 1 : 0)), scale = room / most
      const decodes = step.decodes ? Math.max(2, step.decodes * scale) : 0, prompts = step.prompt_tokens * scale
      context.fillStyle = paints.accent
      context.fillRect(from, y + STEP_ROW - 4 - decodes - prompts, width, prompts)
      context.fillStyle = paints.soft
      context.fillRect(from, y + STEP_ROW - 4 - decodes, width, decodes)
    }
    context.fillStyle = paints.line
    context.fillRect(this._label, y + STEP_ROW - 4, this._scale * (this._time - this._at0), 1)
  }

  _request(track, y, narrow) {
    const paints = this._paints, color = hueOf(track.number, paints), context = this._context
    const middle = y + ROW / 2
    context.fillStyle = color
    context.beginPath()
    context.roundRect(0, middle - 5, 10, 10, 3)
    context.fill()
    const gone = lastSeen(track) < this._time - 1.5
    const name = narrow ? track.id.slice(0, 8) : `${track.id}${track.tenant ? ` · ${track.tenant}` : ""}`
    this._text(name, 16, middle, this._label - 24, gone ? paints.soft : paints.ink)
    this._states(track, middle, color)
    for (const chunk of track.prompts) {
      if (chunk.to < this._at0 || chunk.from > this._time) continue
      const from = this._x(chunk.from), to = this._x(Math.min(chunk.to, this._time))
      context.fillStyle = color
      context.fillRect(from, middle - 8, Math.max(2, to - from - 1), 16)
    }
  }

  /** Between the chunks of its prompt: waits as a line, writing as a band, loads in their own colour. */
  _states(track, middle, color) {
    const context = this._context, paints = this._paints, alpha = context.globalAlpha
    for (const {kind, from, to} of this._stretches(track)) {
      const x = this._x(from), width = this._x(to) - x
      context.fillStyle = {moving: paints.moving, thin: paints.wait}[kind] ?? color
      const height = {writes: 8, thin: 2}[kind] ?? 4
      context.globalAlpha = kind === "writes" ? alpha * .55 : alpha
      context.fillRect(x, middle - height / 2, width, height)
      context.globalAlpha = alpha
      if (kind === "writes") this._cuts(track.engine, from, to, middle, height)
    }
  }

  /** What a request did and how long, as far as pictures tell: from one to the next it did what it did at the first, or wrote. */
  _stretches(track) {
    const found = []
    const first = after(track.points, this._at0) - 1 // nothing before it is seen
    let before = track.points[first - 1] ?? null
    for (const point of track.points.slice(Math.max(0, first))) {
      if (point.at > this._time) break
      const {state} = before ?? point, wrote = before !== null && point.output > before.output
      const kind = wrote || state === "decode" ? "writes" : THIN.has(state) ? "thin" : state === "loading" ? "moving" : "reads"
      const from = before?.at ?? track.from
      if (found.at(-1)?.kind === kind) found.at(-1).to = point.at
      else found.push({kind, from, to: point.at})
      before = point
    }
    return found.filter(stretch => stretch.to >= this._at0)
  }

  /** A band is cut where steps end, if they are wide enough to be seen. */
  _cuts(engine, from, to, middle, height) {
    const context = this._context
    context.fillStyle = this._paints.sheet
    let last = null
    for (const step of this._tracks.stepsSince(engine, Math.max(from, this._at0))) {
      const place = Math.floor(step.ended * this._scale / 3)
      if (step.ended >= to) return
      if (place !== last) context.fillRect(this._x(step.ended), middle - height / 2, .8, height)
      last = place
    }
  }

  _at(event) {
    return this._rows.find(row => event.offsetY >= row.y && event.offsetY < row.y + row.height) ?? null
  }

  _point(event) {
    const row = this._at(event)
    if (!row) return this._story.hide()
    const time = this._at0 + (event.offsetX - this._label) / this._scale
    this._story.show(event, () => row.track ? this._tell(row.track) : this._tellStep(row.engine, time))
  }

  _tell(track) {
    const name = `${track.id}${track.tenant ? ` (${track.tenant})` : ""}`
    const point = track.points.findLast(each => each.at <= this._time)
    if (!point) return `${name} came and went between two pictures.`
    if (lastSeen(track) < this._time - 1.5 && track.points.at(-1) === point) return `${name} ended ${span(this._time - point.at)} ago. It had a prompt of ${plural(track.info.prompt, "token")} and wrote about ${point.output.toLocaleString("en")}.`
    return `${name}, ${span(point.at - track.from)} since it came. ${doing({...track.info, ...point})}`
  }

  _tellStep(engine, time) {
    const step = this._tracks.stepsSince(engine, time).find(each => time >= each.ended - each.seconds)
    if (!step) return "Between steps: the engine waits, or has nothing to do."
    const parts = [step.prompt_tokens && plural(step.prompt_tokens, "token of prompts", "tokens of prompts"), step.decodes && `a token each for ${plural(step.decodes, "request that writes", "requests that write")}`]
    return `Step ${step.number} took ${span(step.seconds)}: ${parts.filter(Boolean).join(", and ")}.`
  }
}

const lastSeen = track => Math.max(track.points.at(-1)?.at ?? 0, track.prompts.at(-1)?.to ?? 0)
