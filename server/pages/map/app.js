// The page: the stream, the time that is looked at, and what is painted when.

const PLAY = ["M8 5v14l11-7Z"], PAUSE = ["M9 6v12M15 6v12"], BACK = ["M15 5 8 12l7 7"], FORTH = ["M9 5l7 7-7 7"]
const RETRY_MS = [500, 1000, 2000, 5000]
const BEHIND_SECONDS = .35 // rows are shown so much late, so that they grow evenly between pictures
const FLOW_MS = 100
const HIDDEN_MS = 10000 // a page that nobody sees asks no longer, so that engines need not draw

const pictures = new Pictures()
const tracks = new Tracks()
const story = new Story(byId("story"))
const cards = new Map()
let held = null // the time that is looked at; null: now
let selected = null // the id of a request
let paints = palette()
let clock = 0 // what to add to this page's clock, in seconds, for that of the engines
let stream = null
let away = false // whether the stream is broken

const choose = id => { selected = id === selected ? null : id; paint() }
const timeline = new Timeline(byId("timeline"), tracks, story, choose)
const openKey = offerKey(() => { document.activeElement?.blur(); listen() }) // space is for pausing again
offerTheme()

// --- the stream ---

/** Read until the page is closed; begin anew where it breaks. */
async function listen() {
  stream?.abort()
  const {signal} = stream = new AbortController()
  for (let failures = 0; !signal.aborted; failures++) {
    try {
      const response = await ask("v1/map", {signal})
      for await (const text of linesOf(response)) {
        failures = 0
        take(text)
        say(null)
      }
    } catch (error) {
      if (error.name === "AbortError") return
      if (!(error instanceof Refusal)) throw error
      say(error)
      if (error.status === 401 || error.status === 403) return
      await new Promise(resolve => setTimeout(resolve, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]))
    }
  }
}

function take(text) {
  const line = pictures.add(text)
  if (line.now < pictures.newest - 5) location.reload() // another machine, or it has been started anew: another clock
  clock = line.now - performance.now() / 1000
  if (line.map) tracks.add(line.engine, line.map)
  else if (!line.unchanged) tracks.ended(line.engine)
  if (!cards.has(line.engine)) {
    const card = new EngineCard(line.engine, tracks, story, choose, repaint)
    cards.set(line.engine, card)
    byId("engines").append(card.node)
  }
  if (held !== null && held < pictures.oldest) held = pictures.oldest
  repaint()
}

function say(refusal) {
  const node = byId("trouble")
  node.hidden = refusal === null
  away = refusal !== null
  if (!refusal) return
  showTime(viewed())
  const key = refusal.status === 401 || refusal.status === 403
  node.replaceChildren(refusal.message, key ? el("span", {}, " ", el("button", {class: "button", type: "button", onclick: openKey}, "Attach a key")) : " Trying again.")
}

let unseen = null
document.addEventListener("visibilitychange", () => {
  clearTimeout(unseen)
  if (document.hidden) unseen = setTimeout(() => { stream.abort(); stream = null }, HIDDEN_MS)
  else if (!stream) listen()
})

// --- time ---

const viewed = () => held ?? pictures.newest

function hold(at) {
  held = at
  paint()
}

/** One picture, or some seconds, back or forth. To go beyond the newest picture is to go back to now. */
function step(forth, seconds = 0) {
  const from = viewed(), to = seconds ? from + (forth ? seconds : -seconds) : pictures.next(from, forth)
  if (forth && (to === null || to >= pictures.newest)) return hold(null)
  hold(Math.max(pictures.oldest, to ?? pictures.oldest))
}

const toggle = () => hold(held === null ? pictures.newest : null)

addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("dialog, input:not(#seek)")) return
  const actions = {
    " ": () => { if (event.target.closest("button, summary, a")) return false; toggle() },
    ArrowLeft: () => step(false, event.shiftKey ? 5 : 0),
    ArrowRight: () => step(true, event.shiftKey ? 5 : 0),
    End: () => hold(null),
    Escape: () => { story.hide(); choose(null) },
  }
  if (actions[event.key] && actions[event.key]() !== false) event.preventDefault()
})

byId("back").replaceChildren(icon(...BACK))
byId("forth").replaceChildren(icon(...FORTH))
byId("back").addEventListener("click", () => step(false))
byId("forth").addEventListener("click", () => step(true))
byId("pause").addEventListener("click", toggle)
byId("all").addEventListener("click", () => choose(null))
document.addEventListener("pointerdown", event => { if (event.target.tagName !== "CANVAS") story.hide() })
byId("seek").addEventListener("input", event => hold(Number(event.target.value) >= pictures.newest - .05 ? null : Number(event.target.value)))

// --- painting ---

function paint() {
  const at = viewed(), names = [...cards.keys()]
  const lines = new Map(names.map(name => [name, pictures.of(name, at)]))
  const sharesTiers = names.length > 1
  for (const [name, card] of cards) card.paint(lines.get(name), at, selected, paints, sharesTiers)
  showShared(sharesTiers ? [...lines.values()] : [])
  const drawn = [...lines.values()].find(line => line?.map)?.map
  if (drawn) byId("block-size").textContent = drawn.block_size
  const total = field => [...lines.values()].reduce((sum, line) => sum + (line?.map?.[field] ?? 0), 0)
  byId("timeline").setAttribute("aria-label", `Requests over time: ${total("running")} run, ${total("waiting")} wait`)
  paintTimeline(held ?? now())
  showTime(at)
  story.again()
}

const now = () => performance.now() / 1000 + clock - BEHIND_SECONDS

function paintTimeline(at) {
  const hidden = timeline.paint([...cards.keys()], at, selected, paints)
  byId("rows-note").textContent = selected !== null ? `only ${selected}` : hidden ? `and ${hidden} more` : ""
  byId("all").hidden = selected === null
}

/** Tiers that several engines use are drawn once, as the engine sees them that drew last; what is on its way is added up. */
function showShared(lines) {
  const maps = lines.map(line => line?.map).filter(Boolean).sort((a, b) => b.at - a.at)
  const names = new Set(maps.flatMap(map => map.tiers.filter(tier => tier.shared).map(tier => tier.name)))
  byId("shared").hidden = names.size === 0
  byId("shared-tiers").replaceChildren(...[...names].map(name => {
    const seen = maps.flatMap(map => map.tiers.filter(tier => tier.name === name))
    const sum = way => seen.reduce((total, tier) => total + tier[way], 0)
    return tierBar({...seen[0], loading: sum("loading"), saving: sum("saving")})
  }))
}

function showTime(at) {
  const live = held === null, button = byId("pause"), seek = byId("seek"), when = byId("when")
  button.replaceChildren(icon(...(live ? PAUSE : PLAY)), el("span", {class: "wide"}, live ? "Pause" : "Live"))
  button.setAttribute("aria-label", live ? "Pause" : "Back to now")
  Object.assign(seek, {min: pictures.oldest, max: pictures.newest})
  seek.value = at
  when.dataset.live = String(live && !away)
  when.textContent = !live ? `${span(pictures.newest - at)} ago` : away ? "no signal" : "live"
  byId("back").disabled = pictures.next(at, false) === null
  byId("forth").disabled = live
  seek.setAttribute("aria-valuetext", when.textContent)
}

let asked = 0
/** Paint when the browser paints next. */
function repaint() {
  asked ||= requestAnimationFrame(() => { asked = 0; paint() })
}

/** Time goes on between pictures: rows move while they are looked at. */
function flow() {
  if (held === null && cards.size && !matchMedia("(prefers-reduced-motion: reduce)").matches) paintTimeline(now())
  setTimeout(() => requestAnimationFrame(flow), FLOW_MS)
}

function recolor() {
  paints = palette()
  showLegend(byId("samples"), byId("row-samples"), paints)
  if (cards.size) paint()
}

new MutationObserver(recolor).observe(document.documentElement, {attributeFilter: ["data-theme"]})
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor)
new ResizeObserver(() => { if (cards.size) repaint() }).observe(byId("engines"))
const legend = remembered("localStorage", "headrace-map-legend")
byId("legend").open = legend.get() ? legend.get() === "open" : innerWidth >= 640
byId("legend").addEventListener("toggle", event => legend.set(event.target.open ? "open" : "closed"))
recolor()
listen()
flow()
