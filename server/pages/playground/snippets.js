// A request as a program: for a shell, for Python with OpenAI's client, for JavaScript. Keys are never written into one.

const LANGUAGES = {curl: asCurl, Python: asPython, JavaScript: asJavaScript}
const KEY_VARIABLE = "API_KEY"

const quoted = text => `'${text.replaceAll("'", "'\\''")}'`

function asCurl(mode, body) {
  const key = apiKey.get() ? ` \\\n  -H "Authorization: Bearer $${KEY_VARIABLE}"` : ""
  return `curl -N ${quoted(address(ENDPOINTS[mode].path))} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${quoted(JSON.stringify(body, null, 2))}\n`
}

function asPython(mode, body) {
  const extensions = FIELDS.filter(field => field.extension && field.name in body).map(field => field.name)
  const known = Object.entries(body).filter(([name]) => !extensions.includes(name))
  const lines = known.map(([name, value]) => `    ${name}=${pythonValue(value)},\n`)
  if (extensions.length) lines.push(`    extra_body=${pythonValue(Object.fromEntries(extensions.map(name => [name, body[name]])))},\n`)
  const key = apiKey.get() ? `os.environ["${KEY_VARIABLE}"]` : '"unused"'
  const [create, text] = mode === "chat" ? ["chat.completions", "choices[0].delta.content or \"\""] : ["completions", "choices[0].text"]
  return `${apiKey.get() ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${address("v1")}", api_key=${key})
stream = client.${create}.create(
${lines.join("")})
for chunk in stream:
    if chunk.choices:
        print(chunk.${text}, end="", flush=True)
print()
`
}

/** As Python writes it. JSON's texts are Python's, but for halves of characters that stand alone. */
function pythonValue(value) {
  if (value === true) return "True"
  if (value === false) return "False"
  if (value === null) return "None"
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`
  if (typeof value === "object") return `{${Object.entries(value).map(([name, each]) => `${JSON.stringify(name)}: ${pythonValue(each)}`).join(", ")}}`
  return JSON.stringify(value)
}

function asJavaScript(mode, body) {
  const key = apiKey.get() ? `, "Authorization": \`Bearer \${process.env.${KEY_VARIABLE}}\`` : ""
  const text = mode === "chat" ? "choices[0]?.delta.content" : "choices[0]?.text"
  return `const response = await fetch(${JSON.stringify(address(ENDPOINTS[mode].path))}, {
  method: "POST",
  headers: {"Content-Type": "application/json"${key}},
  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),
})
if (!response.ok) throw new Error((await response.json()).error.message)
let answer = "", rest = ""
for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
  const events = (rest + part).split("\\n\\n")
  rest = events.pop()
  for (const event of events) {
    if (!event.startsWith("data: {")) continue
    const chunk = JSON.parse(event.slice(6))
    if (chunk.error) throw new Error(chunk.error.message)
    answer += chunk.${text} ?? ""
  }
}
console.log(answer)
`
}

/** The dialog in which they are read and copied; returns what opens it for a request. */
function offerSnippets() {
  const code = el("code")
  let shown = Object.keys(LANGUAGES)[0]
  let request = null
  const tabs = Object.keys(LANGUAGES).map(name => el("button", {class: "button", type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "snippet", onclick: () => show(name)}, name))
  const panel = el("pre", {id: "snippet", role: "tabpanel", tabindex: "0"}, code)
  const dialog = el("dialog", {id: "snippets", "aria-labelledby": "snippets-title"},
    el("div", {class: "stack"},
      el("h2", {id: "snippets-title"}, "This request as code"),
      el("div", {class: "row", role: "tablist", "aria-label": "Language", onkeydown: move}, tabs),
      panel,
      el("div", {class: "row end"},
        copyButton(() => code.textContent, "button"),
        el("button", {class: "button main", type: "button", onclick: () => dialog.close()}, "Close"))))
  document.body.append(dialog)

  function show(name) {
    shown = name
    for (const tab of tabs) {
      const chosen = tab.textContent === name
      tab.setAttribute("aria-selected", String(chosen))
      tab.setAttribute("aria-pressed", String(chosen))
      tab.tabIndex = chosen ? 0 : -1
    }
    panel.setAttribute("aria-labelledby", `tab-${name}`)
    code.textContent = LANGUAGES[name](...request)
  }

  function move(event) {
    const step = {ArrowRight: 1, ArrowLeft: -1}[event.key]
    if (!step) return
    const next = tabs[(tabs.findIndex(tab => tab.textContent === shown) + step + tabs.length) % tabs.length]
    show(next.textContent)
    next.focus()
  }

  return (mode, body) => { request = [mode, body]; show(shown); dialog.showModal() }
}

/** A button that copies a text, and says so. */
function copyButton(text, look = "button quiet") {
  const button = el("button", {class: look, type: "button", onclick: async () => {
    button.textContent = await copied(text(), button) ? "Copied" : "Select and copy by hand"
    setTimeout(() => { button.textContent = "Copy" }, 1500)
  }}, "Copy")
  return button
}

/** Whether it is on the clipboard now. Browsers lend theirs to pages by https and of this machine; the old way works elsewhere. */
async function copied(text, near) {
  try {
    await navigator.clipboard.writeText(text)
    return true
  } catch {
    const area = el("textarea", {class: "sr", "aria-hidden": "true"})
    area.value = text
    near.after(area) // inside an open dialog nothing outside it can be selected
    area.select()
    const done = document.execCommand("copy")
    area.remove()
    near.focus()
    return done
  }
}
