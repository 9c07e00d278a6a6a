// What all pages share: building nodes, the theme, the key, asking the server. The files of a page are one module, in the order that
// its HTML names them. Text becomes text nodes and nothing else: no page parses a string as HTML, and its policy forbids it to.

const SVG = "http://www.w3.org/2000/svg" // a name, and nothing that is loaded

/** A node. Of `attributes` functions listen, `true` sets, `false` and null leave out; children are nodes, texts or null. */
function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children)
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.replace(/^on/, ""), value)
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value)
  }
  node.append(...children.flat().filter(child => child != null && child !== false))
  return node
}

/** A drawing of 24 by 24, of lines in the colour of the text. */
function icon(...paths) {
  const lines = paths.map(d => fill(document.createElementNS(SVG, "path"), {d}, []))
  const look = {viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": "1.8", "stroke-linecap": "round", "stroke-linejoin": "round"}
  return fill(document.createElementNS(SVG, "svg"), {...look, "aria-hidden": "true"}, lines)
}

const byId = id => document.getElementById(id)

/** What the server says, as a sentence: it writes names and values between backticks. */
function sentence(text) {
  const whole = text.replace(/^[a-z]/, first => first.toUpperCase()).replace(/([^.!?:])$/, "$1.")
  return el("p", {}, whole.split(/`([^`]+)`/).map((part, number) => number % 2 ? el("code", {}, part) : part))
}

// --- what is remembered ---

/** A store that may be forbidden: then things are remembered until the page closes. */
function remembered(store, name) {
  let held = null
  const attempt = action => { try { return action() } catch { return null } }
  return {
    get: () => attempt(() => window[store].getItem(name)) ?? held,
    set: value => { held = value; attempt(() => value === null ? window[store].removeItem(name) : window[store].setItem(name, value)) },
  }
}

const apiKey = remembered("sessionStorage", "headrace-key") // of this tab only, and gone with it
const theme = remembered("localStorage", "headrace-theme")

// --- asking the server ---

/** What the server says of a request that it refuses, or what kept the request from it: a sentence. */
class Refusal extends Error {
  constructor(sentence, {status = 0, param = null, code = null} = {}) {
    super(sentence)
    Object.assign(this, {status, param, code})
  }
}

/** An address of this server, also where a proxy serves it below a path. */
const address = path => new URL(path, new URL(".", location.href)).href

/** A response with a status below 300. Raises Refusal, and AbortError if `signal` says so. */
async function ask(path, {method = "GET", body, signal} = {}) {
  const headers = {}
  if (body !== undefined) headers["Content-Type"] = "application/json"
  if (apiKey.get()) headers["Authorization"] = `Bearer ${apiKey.get()}`
  let response
  try {
    response = await fetch(address(path), {method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store"})
  } catch (error) {
    if (error.name === "AbortError") throw error
    throw new Refusal("The server does not answer. It may have stopped, or the network is away.")
  }
  if (!response.ok) throw await refusalOf(response)
  return response
}

async function refusalOf(response) {
  const {status} = response
  const error = await response.json().then(answer => answer.error, () => null)
  return error?.message ? new Refusal(error.message, {...error, status}) : new Refusal(`The server answered ${status} and no more.`, {status})
}

// --- the bar: theme and key ---

const MOON = ["M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5Z"]
const SUN = ["M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8Z", "M12 2v2M12 20v2M2 12h2M20 12h2M4.9 4.9l1.4 1.4M17.7 17.7l1.4 1.4M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4"]
const KEY = ["M8 20a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9Z", "M11.2 12.3 20 3.5M15.5 8l3 3"]

/** The button `#theme`: as the system has it until it is pressed, then as the reader has it. */
function offerTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)")
  const button = byId("theme")
  const show = () => {
    const chosen = theme.get()
    const dark = chosen ? chosen === "dark" : system.matches
    document.documentElement.dataset.theme = chosen ?? ""
    button.replaceChildren(icon(...(dark ? SUN : MOON)))
    button.setAttribute("aria-label", dark ? "Light colours" : "Dark colours")
    button.title = button.getAttribute("aria-label")
    return dark
  }
  button.addEventListener("click", () => { theme.set(show() ? "light" : "dark"); show() })
  system.addEventListener("change", show)
  show()
}

/** The button `#key`, and the dialog behind it. `changed` is called when there is another key. Returns what opens the dialog. */
function offerKey(changed) {
  const button = byId("key")
  const input = el("input", {class: "input", id: "key-input", type: "password", autocomplete: "off", spellcheck: "false", "aria-describedby": "key-note"})
  const dialog = el("dialog", {"aria-labelledby": "key-title"},
    el("form", {},
      el("h2", {id: "key-title"}, "API key"),
      el("label", {class: "field"}, el("span", {}, "Key"), input),
      el("p", {class: "note", id: "key-note"}, "Sent to this server with each request. It is kept for this tab, and gone when the tab closes."),
      el("div", {class: "row end"},
        el("button", {class: "button", type: "button", id: "key-remove", onclick: () => attach("")}, "Remove"),
        el("button", {class: "button main", type: "submit", id: "key-attach"}, "Attach"))))
  document.body.append(dialog)
  const show = () => {
    const has = Boolean(apiKey.get())
    button.replaceChildren(icon(...KEY), el("span", {class: "wide"}, has ? "Key attached" : "Key"))
    button.setAttribute("aria-label", has ? "API key: attached" : "Attach an API key")
    button.setAttribute("aria-pressed", String(has))
  }
  const open = () => { input.value = apiKey.get() ?? ""; dialog.showModal(); input.select() }
  const attach = key => {
    apiKey.set(key.trim() || null)
    dialog.close()
    show()
    changed()
  }
  dialog.querySelector("form").addEventListener("submit", event => { event.preventDefault(); attach(input.value) })
  button.addEventListener("click", open)
  show()
  return open
}
