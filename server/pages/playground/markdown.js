// Markdown to nodes: what models write of CommonMark, and tables. HTML in it is text like any other; links lead to the web or to mail,
// images become links, and nothing is loaded. Lengths and depths are bounded, so no text takes more than time linear in its length.

const FENCE = /^ {0,3}(`{3,}|~{3,}(?!~))([^`]*)$/
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/
const QUOTE = /^ {0,3}> ?/
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?: +|$)/
const SIDE = /^:?-+:?$/ // below the head of a table, once for each column
const DEEPEST = 6 // quotes and lists inside each other

/** Make `node` show `text`. Blocks that stay what they were keep their nodes, so a text that grows costs its last block. */
function showMarkdown(node, text) {
  const blocks = blocksOf(text.split("\n"), 0)
  let same = 0
  while (same < blocks.length && node.childNodes[same]?.source === blocks[same].source) same++
  while (node.childNodes.length > same) node.lastChild.remove()
  for (const {source, build} of blocks.slice(same)) node.append(Object.assign(build(), {source}))
}

/** The blocks of these lines: each has its text, and a function that makes its node. */
function blocksOf(lines, depth) {
  const blocks = []
  for (let at = 0; at < lines.length;) {
    const begin = at
    if (!lines[at].trim()) { at++; continue }
    const {end, build} = blockAt(lines, at, depth)
    at = end
    blocks.push({source: lines.slice(begin, end).join("\n"), build})
  }
  return blocks
}

function blockAt(lines, at, depth) {
  const line = lines[at]
  const fence = FENCE.exec(line)
  if (fence) return codeAt(lines, at, fence)
  const heading = HEADING.exec(line)
  if (heading) return {end: at + 1, build: () => el(`h${Math.min(6, heading[1].length + 2)}`, {}, inline(heading[2].trimEnd().replace(/(?:^|[ \t])#+$/, "")))}
  if (RULE.test(line)) return {end: at + 1, build: () => el("hr")}
  if (depth < DEEPEST && QUOTE.test(line)) return quoteAt(lines, at, depth)
  if (depth < DEEPEST && ITEM.test(line)) return listAt(lines, at, depth)
  if (isTable(lines, at)) return tableAt(lines, at)
  let end = at + 1
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end, depth)) end++
  return {end, build: () => el("p", {}, inline(lines.slice(at, end).join("\n").trim()))}
}

const cells = line => line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|").map(cell => cell.trim())
const isTable = (lines, at) => lines[at].includes("|") && (lines[at + 1] ?? "").includes("|") && cells(lines[at + 1]).every(cell => SIDE.test(cell))

function interrupts(lines, at, depth) {
  const line = lines[at]
  const nested = depth < DEEPEST && (QUOTE.test(line) || ITEM.test(line))
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || nested || isTable(lines, at)
}

/** Code up to its closing fence, or to the end of what has come so far. */
function codeAt(lines, at, [, fence, language]) {
  let end = at + 1
  const closes = line => { const bare = line.trim(); return bare.length >= fence.length && bare === fence[0].repeat(bare.length) }
  while (end < lines.length && !closes(lines[end])) end++
  const text = lines.slice(at + 1, end).join("\n")
  return {end: Math.min(end + 1, lines.length), build: () => codeBlock(text, language.trim().split(/\s/)[0])}
}

function codeBlock(text, language) {
  return el("figure", {class: "code"},
    el("figcaption", {}, el("span", {}, language || "text"), copyButton(() => text)),
    el("pre", {tabindex: "0", role: "region", "aria-label": `Code${language ? `, ${language}` : ""}`}, el("code", {}, text)))
}

function quoteAt(lines, at, depth) {
  let end = at
  while (end < lines.length && QUOTE.test(lines[end])) end++
  const inner = lines.slice(at, end).map(line => line.replace(QUOTE, ""))
  return {end, build: () => el("blockquote", {}, blocksOf(inner, depth + 1).map(block => block.build()))}
}

/** A list: items of one kind, each with the lines that are indented below it. */
function listAt(lines, at, depth) {
  const first = ITEM.exec(lines[at])
  const indent = first[1].length
  const ordered = /\d/.test(first[2])
  const items = []
  let end = at
  while (end < lines.length) {
    const match = ITEM.exec(lines[end])
    const spaces = lines[end].search(/\S/)
    if (match && spaces < indent + 2) {
      if (/\d/.test(match[2]) !== ordered || RULE.test(lines[end])) break
      items.push([lines[end].slice(match[0].length)])
    } else if (spaces < 0) {
      const next = lines.slice(end, end + 3).find(line => line.trim())
      if (!next || !(ITEM.test(next) || next.search(/\S/) >= indent + 2)) break
      items.at(-1).push("")
    } else if (spaces >= indent + 2) {
      items.at(-1).push(lines[end].slice(Math.min(spaces, indent + first[0].trim().length + 1)))
    } else if (items.at(-1).at(-1) === "" || interrupts(lines, end, depth)) break
    else items.at(-1).push(lines[end])
    end++
  }
  const start = ordered ? parseInt(first[2], 10) : 1
  return {end, build: () => el(ordered ? "ol" : "ul", start === 1 ? {} : {start}, items.map(item => el("li", {}, itemNodes(item, depth))))}
}

/** One paragraph stands in its item without a space around it. */
function itemNodes(lines, depth) {
  return blocksOf(lines, depth + 1).flatMap((block, number) => {
    const node = block.build()
    return number === 0 && node.tagName === "P" ? [...node.childNodes] : [node]
  })
}

function tableAt(lines, at) {
  let end = at + 2
  while (end < lines.length && lines[end].includes("|") && lines[end].trim()) end++
  const sides = cells(lines[at + 1]).map(cell => /^:-+:$/.test(cell) ? "center" : /-:$/.test(cell) ? "end" : null)
  const row = (line, tag) => el("tr", {}, cells(line).map((cell, column) => el(tag, {class: sides[column]}, inline(cell))))
  return {end, build: () => el("div", {class: "table", tabindex: "0", role: "region", "aria-label": "Table"},
    el("table", {}, el("thead", {}, row(lines[at], "th")), el("tbody", {}, lines.slice(at + 2, end).map(line => row(line, "td")))))}
}

// What can begin inside a line, the first that fits.
const INLINE = new RegExp([
  /(?<!`)(?<ticks>`+)(?!`)(?<code>[^]{1,2000}?)(?<!`)\k<ticks>(?!`)/,
  /\\(?<escaped>[!-/:-@[-`{-~])/,
  /!?\[(?<label>[^[\]]{0,500})\]\((?<target>[^\s()<>]{1,1000}(?:\([^\s()<>]{0,200}\)[^\s()<>]{0,200})?)(?:[ \t]+"[^"]{0,200}")?\)/,
  /<(?<angled>https?:\/\/[^\s<>]{1,2000})>/,
  /(?<![\w/])(?<bare>https?:\/\/[^\s<>"'`\]]{0,2000}[^\s<>"'`\].,;:!?)*_~])/,
  /\*\*(?=\S)(?<strong>[^]{0,2000}?\S)\*\*(?!\*)/,
  /(?<!\w)__(?=\S)(?<strong2>[^]{0,2000}?\S)__(?!\w)/,
  /\*(?=[^\s*])(?<emphasis>[^]{0,2000}?[^\s*])\*(?!\*)/,
  /(?<!\w)_(?=[^\s_])(?<emphasis2>[^]{0,2000}?[^\s_])_(?!\w)/,
  /~~(?=\S)(?<struck>[^]{0,2000}?\S)~~/,
  /(?:(?<! ) {2,}|\\)?(?<newline>\n)/,
].map(pattern => pattern.source).join("|"), "g")

/** The nodes of a line of text. */
function inline(text, depth = 0) {
  const nodes = []
  let at = 0
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(text.slice(at, match.index))
    nodes.push(depth < DEEPEST ? inlineNode(match, depth) : match[0])
    at = match.index + match[0].length
  }
  if (at < text.length) nodes.push(text.slice(at))
  return nodes
}

function inlineNode(match, depth) {
  const found = match.groups
  const within = (tag, inner) => el(tag, {}, inline(inner, depth + 1))
  if (found.code !== undefined) return el("code", {}, found.code.replace(/\n/g, " ").replace(/^ (.*\S.*) $/, "$1"))
  if (found.escaped !== undefined) return found.escaped
  if (found.label !== undefined) return link(found.target, inline(found.label || found.target, DEEPEST)) ?? match[0]
  if (found.angled !== undefined || found.bare !== undefined) return link(found.angled ?? found.bare, [found.angled ?? found.bare])
  if (found.newline !== undefined) return el("br")
  if (found.struck !== undefined) return within("s", found.struck)
  const strong = found.strong ?? found.strong2
  return strong !== undefined ? within("strong", strong) : within("em", found.emphasis ?? found.emphasis2)
}

/** A link to the web or to a mailbox that opens in a tab of its own and tells nothing of this page; null for any other address. */
function link(target, label) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(target)) return null
  return el("a", {href: target, target: "_blank", rel: "noopener noreferrer nofollow"}, label)
}
