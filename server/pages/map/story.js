// What a square or a request has to say, in sentences.

/** A note beside the pointer. */
class Story {
  constructor(node) {
    this._node = node
    this._tell = null
  }

  /** @param {() => string} tell is asked again when there is something new to see */
  show(event, tell) {
    this._tell = tell
    this._node.hidden = false
    this.again()
    this._node.dataset.low = String(event.pointerType === "touch") // not under the finger
    const {clientX: x, clientY: y} = event, {offsetWidth: width, offsetHeight: height} = this._node
    const left = x + 16 + width > innerWidth - 12 ? Math.max(12, x - 16 - width) : x + 16
    const top = y + 18 + height > innerHeight - 12 ? Math.max(12, y - 14 - height) : y + 18
    this._node.style.left = `${Math.min(left, innerWidth - width - 12)}px`
    this._node.style.top = `${top}px`
  }

  again() {
    if (this._tell) this._node.textContent = this._tell()
  }

  hide() {
    this._tell = null
    this._node.hidden = true
  }
}

/** The story of a square. */
function storyOf(tracks, engine, drawn, cells, index, at) {
  const first = index * cells.perCell, last = Math.min(cells.blocks, first + cells.perCell) - 1
  const name = first === last ? `Block ${first}` : `Blocks ${first} to ${last}`
  const owners = cells.owners[cells.sets[index]][0]
  if (first !== last) return ofSeveral(name, drawn, cells, index)
  switch (cells.states[index]) {
    case CELL.FREE: return `${name} is free. ${wasFormerly(tracks.lastStay(engine, index, at), at)}`
    case CELL.CACHED: return `${name} is cached: nobody uses it now, but what it holds is kept. ${isKept(tracks.lastStay(engine, index, at), drawn, at)}`
    case CELL.SAVING: return `${name} is being copied down to ${tierThat(drawn, "saving")}.${owners ? ` ${ofOwners(drawn, cells, index)}` : " Then it can be given to others."}`
    case CELL.LOADING: return `${name} is being filled from ${tierThat(drawn, "loading")}, which is quicker than computing it.${owners ? ` ${ofOwners(drawn, cells, index)}` : ""}`
  }
  return owners ? `${name}. ${ofOwners(drawn, cells, index)}` : `${name} is in use, by a request that is not among those shown.`
}

/** A square of several blocks tells of the busiest of them. */
function ofSeveral(name, drawn, cells, index) {
  const [used, cached] = [cells.active[index], cells.cached[index]]
  if (!used && !cached) return `${name} are free.`
  const counts = `${name}: ${used || "none"} in use, ${cached || "none"} cached.`
  const [owners, ...rows] = cells.owners[cells.sets[index]]
  if (!owners) return counts
  const who = owners > 1 ? plural(owners, "request") : drawn.requests[rows[0]].name
  return `${counts} One of them has tokens ${tokensAt(cells.places[index], drawn)} of ${who}.${owners > 1 ? "" : ` ${doing(drawn.requests[rows[0]])}`}`
}

function tierThat(drawn, way) {
  const names = drawn.tiers.filter(tier => tier[way]).map(tier => tier.name)
  return names.length === 1 ? `the ${names[0]} tier` : "a tier below"
}

const wasFormerly = (stay, at) => stay ? `It last belonged to ${stay.id}, until ${span(at - stay.to)} ago.` : "Nobody has used it since you began to watch."

function isKept(stay, drawn, at) {
  const next = "The next prompt that begins in the same way finds it here instead of computing it."
  if (!stay) return next
  return `It has tokens ${tokensAt(stay.place, drawn)} of ${stay.id}, which let it go ${span(at - stay.to)} ago. ${next}`
}

const tokensAt = (place, drawn) => `${place * drawn.block_size} to ${(place + 1) * drawn.block_size - 1}`

/** Whose a square is. */
function ofOwners(drawn, cells, index) {
  const [count, ...rows] = cells.owners[cells.sets[index]], place = cells.places[index]
  const requests = rows.map(row => drawn.requests[row])
  const which = `tokens ${tokensAt(place, drawn)}`
  if (count > 1) {
    const names = requests.slice(0, 3).map(request => request.name)
    const more = count > names.length ? ` and ${count - names.length} more` : ""
    return `It holds ${which}, with which ${plural(count, "request")} begin alike: ${names.join(", ")}${more}. They were computed once.`
  }
  const [request] = requests, filled = request.computed - place * drawn.block_size
  const part = filled < drawn.block_size ? ` ${plural(Math.max(0, filled), "place")} of ${drawn.block_size} ${filled === 1 ? "is" : "are"} taken.` : ""
  return `It holds ${which} of ${request.name}${request.tenant ? ` (${request.tenant})` : ""}.${part} ${doing(request)}`
}

/** What a request does, as a sentence. */
function doing(request) {
  const {state, prompt, output, most_output: most, computed, cached, preemptions} = request
  const found = cached ? `; ${cached.toLocaleString("en")} of them were found in the cache` : ""
  const again = preemptions ? ` It had to give its blocks back ${plural(preemptions, "time")}.` : ""
  switch (state) {
    case "waiting": return `The request waits for its turn with a prompt of ${plural(prompt, "token")}.`
    case "preempted": return `The request had to give its blocks back to others, and waits to go on after ${plural(output, "token")}.`
    case "loading": return "The request waits for blocks on their way from a tier below."
    case "prefill": return `The request reads its prompt: ${Math.min(computed, prompt + output).toLocaleString("en")} of ${plural(prompt + output, "token")} are computed${found}.${again}`
  }
  return `The request writes: ${output.toLocaleString("en")} of at most ${plural(most, "token")}, after a prompt of ${prompt.toLocaleString("en")}${found}.${again}`
}
