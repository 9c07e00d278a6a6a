// The page itself: composer, conversation, settings.

const IDEAS = {
  chat: ["What is a water wheel, in three sentences?", "Write a haiku about a mill.", "Compare a headrace and a tailrace in a table."],
  completion: ["The capital of France is", "Once upon a time a river", "def fibonacci(n):"],
}
const SEND = ["M12 19V5", "M5.5 11.5 12 5l6.5 6.5"]
const STOP = ["M7 7h10v10H7Z"]
const WORDS = {
  chat: {label: "Message", placeholder: "Ask something", title: "What shall we ask?"},
  completion: {label: "Text to continue", placeholder: "A text to go on with", title: "What shall it go on with?"},
}

const form = new Form(byId("fields"))
const prompt = byId("prompt")
const turns = {chat: [], completion: []}
let running = null // {turn, controller} while an answer comes
const mode = () => document.querySelector("input[name=mode]:checked").value

// Behind a proxy's path the page may stand at `/llm`: what it asks for lies below `/llm/`.
if (!location.pathname.endsWith("/")) history.replaceState(history.state, "", `${location.pathname}/${location.search}${location.hash}`)

const openKey = offerKey(() => loadModels())
const openSnippets = offerSnippets()
offerTheme()

// --- asking ---

/** The messages so far, without those that got no answer, and then this one. */
function conversation(before, text) {
  const answered = before.filter(turn => turn.answer?.text)
  return [...answered.flatMap(turn => [{role: "user", content: turn.asked}, {role: "assistant", content: turn.answer.text}]), {role: "user", content: text}]
}

function bodyFor(kind, text, before = turns[kind]) {
  return form.body(kind, kind === "chat" ? conversation(before, text) : text)
}

/** Ask, and show what comes. */
async function send(text) {
  const kind = mode()
  let body
  try {
    body = bodyFor(kind, text)
  } catch (refusal) {
    return refused(kind, text, refusal)
  }
  const turn = addTurn(kind, text, body)
  const answer = new Answer(kind)
  const controller = new AbortController()
  running = {turn, controller}
  showRunning()
  const repaint = eachFrame(() => following(() => turn.show(answer)))
  try {
    const response = await ask(ENDPOINTS[kind].path, {method: "POST", body, signal: controller.signal})
    for await (const chunk of chunksOf(response)) { answer.add(chunk); repaint() }
  } catch (error) {
    if (error.name === "AbortError") answer.stopped = true
    else if (error instanceof Refusal) answer.trouble = error
    else throw error
  } finally {
    running = null
    repaint.stop()
    following(() => { turn.show(answer); turn.end(answer.trouble) })
    showRunning(answer)
  }
  if (answer.id) tellStory(turn, answer.id)
}

/** What never reached the server. */
function refused(kind, text, refusal) {
  const turn = addTurn(kind, text, null)
  turn.end(refusal)
  showRunning({trouble: refusal})
}

function addTurn(kind, text, body) {
  const turn = new Turn({
    mode: kind,
    asked: text,
    again: () => { if (!running) { dropFrom(turn); send(text) } },
    code: () => openSnippets(kind, body),
    remedy: remedyFor,
    cost: usage => form.cost(usage),
  })
  turns[kind].push(turn)
  byId("log").append(turn.node)
  showWelcome()
  toEnd()
  return turn
}

/** Forget a turn and what came after it. */
function dropFrom(turn) {
  const all = turns[turn.mode]
  const at = turn.mode === "chat" ? all.indexOf(turn) : -1
  for (const gone of at < 0 ? [] : all.splice(at)) gone.node.remove()
  if (turn.mode !== "chat" && !turn.answer?.text) { all.splice(all.indexOf(turn), 1); turn.node.remove() }
}

function stop() {
  running?.controller.abort()
}

/** What the server tells of the request, if it keeps such a record. */
async function tellStory(turn, id) {
  const story = await ask(`v1/requests/${encodeURIComponent(id)}`).then(response => response.json()).catch(() => null)
  if (Array.isArray(story?.summary)) following(() => turn.tell(story.summary.map(String)))
}

/** What helps against a refusal: another key, or another value in the field that it is about. */
function remedyFor({status, param}) {
  if (status === 401) return {label: "Attach a key", go: openKey}
  const input = form.inputOf(param)
  if (!input) return null
  input.setAttribute("aria-invalid", "true")
  const go = () => { showSettings(true); input.closest("details")?.setAttribute("open", ""); input.focus() }
  return {label: "Go to the field", go}
}

// --- showing ---

/** Call `action` at most once a frame, until `stop`. */
function eachFrame(action) {
  let frame = 0
  const ask = () => { frame ||= requestAnimationFrame(() => { frame = 0; action() }) }
  ask.stop = () => cancelAnimationFrame(frame)
  return ask
}

const page = document.scrollingElement
const toEnd = () => page.scrollTo({top: page.scrollHeight})

/** Change something, and stay at the end of the conversation for a reader who is there. */
function following(change) {
  const follows = page.scrollHeight - page.scrollTop - page.clientHeight < 80
  change()
  if (follows) toEnd()
}

function showRunning(ended) {
  const button = byId("send")
  button.replaceChildren(icon(...(running ? STOP : SEND)))
  button.setAttribute("aria-label", running ? "Stop" : "Send")
  button.title = running ? "Stop (Esc)" : "Send (Enter)"
  button.disabled = !running && !prompt.value.trim()
  byId("hint").textContent = running ? "Esc stops" : "Enter sends, Shift+Enter begins a line"
  byId("status").textContent = running ? "The answer is coming." : !ended ? "" : ended.trouble ? "" : ended.stopped ? "Stopped." : "The answer is complete."
}

function showWelcome() {
  const kind = mode()
  const empty = !turns[kind].length
  byId("welcome").hidden = !empty
  byId("fresh").disabled = empty
  document.body.dataset.empty = String(empty)
  byId("welcome").replaceChildren(el("h2", {}, WORDS[kind].title),
    el("ul", {}, IDEAS[kind].map(idea => el("li", {}, el("button", {class: "idea", type: "button", onclick: () => send(idea)}, idea)))))
}

function showMode() {
  const kind = mode()
  byId("log").replaceChildren(...turns[kind].map(turn => turn.node))
  byId("prompt-label").textContent = WORDS[kind].label
  prompt.placeholder = WORDS[kind].placeholder
  form.systemField.hidden = kind !== "chat"
  showWelcome()
}

const narrow = matchMedia("(max-width: 59.99rem)") // where settings lie over the page

function showSettings(yes) {
  document.body.dataset.settings = yes ? "open" : "closed"
  byId("settings-toggle").setAttribute("aria-expanded", String(yes))
  document.querySelector("main").inert = yes && narrow.matches
  if (yes && narrow.matches) byId("settings-close").focus()
}

// --- models ---

async function loadModels() {
  const note = byId("models-trouble")
  try {
    const {data} = await (await ask("v1/models")).json()
    const chosen = form.model.value
    form.model.replaceChildren(...data.map(({id}) => el("option", {value: id, selected: id === chosen}, id)))
    const length = data[0]?.max_model_len
    form.context.textContent = length ? `Prompt and answer: ${length.toLocaleString("en")} tokens together.` : ""
    note?.remove()
  } catch (error) {
    if (!(error instanceof Refusal)) throw error
    const keyless = error.status === 401
    const trouble = el("div", {class: "trouble stack", id: "models-trouble", role: "alert"}, sentence(keyless ? "This server asks for an API key." : error.message),
      el("div", {class: "row"}, el("button", {class: "button", type: "button", onclick: keyless ? openKey : loadModels}, keyless ? "Attach a key" : "Try again")))
    note ? note.replaceWith(trouble) : byId("welcome").after(trouble)
  }
}

// --- hands ---

byId("composer").addEventListener("submit", event => {
  event.preventDefault()
  if (running) return stop()
  const text = prompt.value
  if (!text.trim()) return
  prompt.value = ""
  send(text)
})
prompt.addEventListener("input", () => showRunning())
prompt.addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || running) return
  event.preventDefault()
  byId("composer").requestSubmit()
})
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return
  if (running) stop()
  else if (document.body.dataset.settings === "open") { showSettings(false); byId("settings-toggle").focus() }
})
byId("settings-toggle").addEventListener("click", () => showSettings(document.body.dataset.settings !== "open"))
byId("settings-close").addEventListener("click", () => { showSettings(false); byId("settings-toggle").focus() })
byId("reset").addEventListener("click", () => form.reset())
byId("fresh").addEventListener("click", () => { stop(); turns[mode()].length = 0; showMode(); prompt.focus() })
byId("code").addEventListener("click", () => {
  try {
    openSnippets(mode(), bodyFor(mode(), prompt.value || IDEAS[mode()][0]))
  } catch (refusal) {
    remedyFor(refusal)?.go()
  }
})
for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", showMode)

byId("settings-toggle").append(icon("M4 7h9M17 7h3M4 17h3M11 17h9", "M15 9.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5Z", "M9 19.5a2.5 2.5 0 1 0 0-5 2.5 2.5 0 0 0 0 5Z"))
narrow.addEventListener("change", () => showSettings(false))
showSettings(false)
showMode()
showRunning()
loadModels()
if (matchMedia("(pointer: fine)").matches) prompt.focus()
