// An answer as DOM nodes: its blocks as the server marks them, and in their text code, bold and italics.
// Links and images stay text on purpose: a model's answer must not make the browser fetch or open anything.

import { copyButton, el } from "./dom.js";

// The marks of the format at the edges of a block. What block it is, and where it ends, is the server's word.
const HASHES = /^#+\s*|\s+#+\s*$/g;
const ITEM_MARK = /^(?:[-*+]|(\d+)[.)])[^\S\n]?/;
const QUOTE_MARKS = /^[^\S\n]*>[>\s]*/;
const CLOSING_FENCE = /\n[^\S\n]*(?:`{3,}|~{3,})\s*$/;
const RULE = /^\s*(?:[-*_]\s*){3,}$/;
const BLANK_LINES = /\n(?:[^\S\n]*\n)+/;
// Of the last line, as far as it goes: it may become an item, a fence, ... and is shown as soon as that is certain.
const UNDECIDED = /^(?:[-*+#>|_:`~\s]+|\s*\d{1,9}[.)]?\s*|\s*`{3,}[^`]*|\s*~{3,}.*)$/;
// The spans are bounded, so that text full of unmatched marks costs linear time.
const CODE = /(`{1,3})(?!`)(.{1,1000}?)(?<!`)\1(?!`)/;
const BOLD = /\*\*(?=\S)(.{1,1000}?)(?<=\S)\*\*/;
const ITALIC = /(?<!\w)\*(?=\S)(.{1,500}?)(?<=\S)\*(?!\w)/;
const INLINE = new RegExp([CODE, BOLD, ITALIC].map((pattern) => pattern.source).join("|"), "gs");

/** Shows a growing text. Blocks that have ended keep their nodes: a token costs no more late in an answer than early. */
export class MarkdownView {
  #root;
  /** Of the blocks that have ended: how many, how many nodes they and the rules between them take, where the last one ends. */
  #ended = { blocks: 0, nodes: 0, at: 0 };

  constructor(root) {
    this.#root = root;
  }

  /** `done`: nothing will be added to the text. */
  render(text, { blocks, begun }, done) {
    const line = text.lastIndexOf("\n") + 1;
    const isUndecided = !done && begun < line && UNDECIDED.test(text.slice(line));
    const shown = isUndecided ? text.slice(0, line) : text;
    const [nodes, ended] = [[], this.#ended];
    let at = ended.at;
    for (const block of blocks.slice(ended.blocks)) {
      nodes.push(...drawLoose(shown.slice(at, block.begin)), draw(block, shown));
      at = block.end ?? shown.length;
      if (block.end !== null) this.#ended = { blocks: this.#ended.blocks + 1, nodes: ended.nodes + nodes.length, at };
    }
    fill(this.#root, [...nodes, ...drawLoose(shown.slice(at))], ended.nodes);
  }
}

/** Gives a node these children from a place on. Those that it has already stay where they are, with focus and scroll position. */
function fill(parent, children, from = 0) {
  const nodes = children.map((child) => (typeof child === "string" ? document.createTextNode(child) : child));
  const wanted = new Set(nodes);
  for (let i = parent.childNodes.length - 1; i >= from; i--) {
    if (!wanted.has(parent.childNodes[i])) parent.childNodes[i].remove();
  }
  nodes.forEach((node, i) => {
    const there = parent.childNodes[from + i] ?? null;
    if (there !== node) parent.insertBefore(node, there);
  });
  return parent;
}

/** What is in no block: rules, and the beginning of a block that is not certain yet. */
function drawLoose(text) {
  const nodes = [];
  let lines = [];
  const paragraph = () => {
    if (lines.length) nodes.push(el("p", {}, ...inline(lines.join("\n").trim())));
    lines = [];
  };
  for (const line of text.split("\n")) {
    const isRule = RULE.test(line);
    if (line.trim() && !isRule) {
      lines.push(line);
      continue;
    }
    paragraph();
    if (isRule) nodes.push(el("hr"));
  }
  paragraph();
  return nodes;
}

/** The node of a block. One that has ended is drawn once more, and then never again. */
function draw(block, text) {
  if (block.drawn) return block.node;
  block.drawn = block.end !== null;
  const written = text.slice(block.begin, block.end ?? text.length).trimEnd();
  return (block.node = DRAW[block.kind](block, written, text));
}

const DRAW = {
  paragraph: ({ node = el("p") }, written) => fill(node, inline(written)),
  // The page has its own h1 and h2 above an answer.
  heading: ({ node, level }, written) =>
    fill(node ?? el(`h${Math.min(6, level + 2)}`), inline(written.replace(HASHES, ""))),
  quote: ({ node = el("blockquote") }, written) =>
    fill(node, paragraphs(written.split("\n").map((line) => line.replace(QUOTE_MARKS, ""))).map(asParagraph)),
  list: drawList,
  item: drawItem,
  // A table is shown as it was written, in columns of equal letters.
  table: (block, written, text) => drawCode(block, undented(block, written, text)),
  code: (block, written, text) => drawCode(block, undented(block, inFence(written), text)),
};

function drawList({ node, ordered, begin, inner }, _, text) {
  node ??= ordered ? el("ol", { start: Number(ITEM_MARK.exec(text.slice(begin, begin + 11))?.[1] ?? 1) }) : el("ul");
  return fill(node, inner.map((item) => draw(item, text)));
}

/** An item's first lines are its text; further paragraphs and the blocks that it holds stand below. */
function drawItem({ node = el("li"), begin, end, inner }, written, text) {
  const parts = [];
  let at = begin + (ITEM_MARK.exec(written)?.[0].length ?? 0);
  for (const block of [...inner, null]) {
    const texts = paragraphs(text.slice(at, block?.begin ?? end ?? text.length).split("\n").map((line) => line.trim()));
    if (!parts.length && texts.length) parts.push(...inline(texts.shift()));
    parts.push(...texts.map(asParagraph));
    if (block) parts.push(draw(block, text));
    at = block?.end ?? text.length;
  }
  return fill(node, parts);
}

/** The node stays the same while the code grows, and with it the reader's scroll position in it. */
function drawCode({ node, language }, text) {
  const code = node?.querySelector("code") ?? el("code");
  if (code.textContent !== text) code.textContent = text;
  if (node) return node;
  const label = el("span", { textContent: language || "text" });
  const head = el("div", { className: "code-head" }, label, copyButton(() => code.textContent));
  return el("div", { className: "code" }, head, el("pre", { tabIndex: 0 }, code));
}

/** The lines between the first one and the fence that closes them, if there is one yet. */
function inFence(written) {
  return written.replace(CLOSING_FENCE, "\n").split("\n").slice(1).join("\n").replace(/\n$/, "");
}

/** Without what a block's lines are indented by as a whole. */
function undented({ begin }, lines, text) {
  const indent = begin - 1 - text.lastIndexOf("\n", begin - 1);
  return lines.split("\n").map((line) => line.slice(Math.min(indent, line.search(/\S|$/)))).join("\n");
}

/** The runs of lines between blank ones. */
function paragraphs(lines) {
  return lines.join("\n").split(BLANK_LINES).map((text) => text.trim()).filter(Boolean);
}

function asParagraph(text) {
  return el("p", {}, ...inline(text));
}

function inline(text) {
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    nodes.push(span(match));
    at = match.index + match[0].length;
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

function span([, , code, bold, italic]) {
  if (code !== undefined) return el("code", { textContent: code });
  if (bold !== undefined) return el("strong", {}, ...inline(bold));
  return el("em", {}, ...inline(italic));
}
