// A small, safe subset of Markdown as DOM nodes: paragraphs, headings, lists, code, bold and italics.
// Links and images stay text on purpose: a model's answer must not make the browser fetch or open anything.

import { copyButton, el } from "./dom.js";

const FENCE = /^\s*(`{3,}|~{3,})\s*([\w+#.-]*)/;
const HEADING = /^(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^\s*(?:-{3,}|\*{3,}|_{3,})\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const TABLE_ROW = /^\s*\|/;
// The spans are bounded, so that text full of unmatched marks costs linear time.
const CODE = /(`{1,3})(?!`)(.{1,1000}?)(?<!`)\1(?!`)/;
const BOLD = /\*\*(?=\S)(.{1,1000}?)(?<=\S)\*\*/;
const ITALIC = /(?<!\w)\*(?=\S)(.{1,500}?)(?<=\S)\*(?!\w)/;
const INLINE = new RegExp([CODE, BOLD, ITALIC].map((pattern) => pattern.source).join("|"), "gs");

/** Renders a growing text. Blocks that did not change keep their nodes: a token costs no more late in an answer than early. */
export class MarkdownView {
  #root;
  #shown = [];

  constructor(root) {
    this.#root = root;
  }

  render(text) {
    const blocks = parseBlocks(text);
    let same = 0;
    while (same < blocks.length && isSame(this.#shown[same], blocks[same])) same++;
    if (!this.#growCode(blocks, same)) this.#replaceFrom(same, blocks);
    this.#shown = blocks;
  }

  /** A code block that is being written keeps its node, and with it the reader's scroll position in it. */
  #growCode(blocks, index) {
    const [old, grown] = [this.#shown[index], blocks[index]];
    const isLast = index === blocks.length - 1 && index === this.#shown.length - 1;
    if (!isLast || old.kind !== "code" || grown.kind !== "code" || old.language !== grown.language) return false;
    this.#root.children[index].querySelector("code").textContent = grown.text;
    return true;
  }

  #replaceFrom(index, blocks) {
    while (this.#root.children.length > index) this.#root.lastElementChild.remove();
    this.#root.append(...blocks.slice(index).map(renderBlock));
  }
}

/** The text as a list of blocks: {kind: paragraph | heading | rule | list | code, ...}. */
export function parseBlocks(text) {
  const lines = text.split("\n");
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at++;
      continue;
    }
    const [block, next] = readBlock(lines, at);
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function readBlock(lines, at) {
  const line = lines[at];
  if (FENCE.test(line)) return readFence(lines, at);
  if (TABLE_ROW.test(line)) return readTable(lines, at);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2] }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule", text: "" }, at + 1];
  if (ITEM.test(line)) return readList(lines, at);
  return readParagraph(lines, at);
}

function readFence(lines, start) {
  const [, fence, language] = FENCE.exec(lines[start]);
  let end = start + 1;
  while (end < lines.length && !lines[end].trim().startsWith(fence)) end++;
  const indent = lines[start].search(/\S/);
  const body = lines.slice(start + 1, end).map((line) => line.slice(Math.min(indent, line.search(/\S|$/))));
  return [{ kind: "code", language, text: body.join("\n") }, end + 1];
}

/** A table is shown as it was written, in columns of equal letters. */
function readTable(lines, start) {
  let end = start;
  while (end < lines.length && TABLE_ROW.test(lines[end])) end++;
  return [{ kind: "code", language: "", text: lines.slice(start, end).join("\n") }, end];
}

function readParagraph(lines, start) {
  let end = start + 1;
  while (end < lines.length && continuesParagraph(lines[end])) end++;
  return [{ kind: "paragraph", text: lines.slice(start, end).join("\n") }, end];
}

function continuesParagraph(line) {
  return line.trim() !== "" && ![FENCE, HEADING, RULE, ITEM, TABLE_ROW].some((pattern) => pattern.test(line));
}

/** Items, and the indented lines that continue them; a blank line ends the list unless another item follows. */
function readList(lines, start) {
  const items = [];
  let at = start;
  for (; at < lines.length; at++) {
    const line = lines[at];
    const item = RULE.test(line) ? null : ITEM.exec(line);
    if (item) items.push(listItem(item));
    else if (line.trim() === "" && ITEM.test(lines[at + 1] ?? "")) continue;
    else if (/^\s+\S/.test(line) && !FENCE.test(line)) items.at(-1).text += `\n${line.trim()}`;
    else break;
  }
  return [{ kind: "list", items, text: lines.slice(start, at).join("\n") }, at];
}

function listItem([, space, mark, text]) {
  return { indent: space.length, ordered: /\d/.test(mark), number: Number.parseInt(mark, 10), text };
}

function isSame(one, other) {
  return one !== undefined && one.kind === other.kind && one.text === other.text && one.language === other.language;
}

function renderBlock(block) {
  switch (block.kind) {
    case "code":
      return renderCode(block);
    case "heading":
      // The page has its own h1 and h2 above an answer.
      return el(`h${Math.min(6, block.level + 2)}`, {}, ...inline(block.text));
    case "rule":
      return el("hr");
    case "list":
      return renderList(block.items);
    default:
      return el("p", {}, ...inline(block.text));
  }
}

function renderCode({ language, text }) {
  const code = el("code", { textContent: text });
  const label = el("span", { textContent: language || "text" });
  const head = el("div", { className: "code-head" }, label, copyButton(() => code.textContent));
  return el("div", { className: "code" }, head, el("pre", { tabIndex: 0 }, code));
}

/** Nested lists from indentation: items deeper than the first belong to the item above them. */
function renderList(items) {
  const { indent, ordered, number } = items[0];
  const list = el(ordered ? "ol" : "ul", ordered ? { start: number } : {});
  for (let at = 0; at < items.length; ) {
    let end = at + 1;
    while (end < items.length && items[end].indent > indent + 1) end++;
    const item = el("li", {}, ...inline(items[at].text));
    if (end > at + 1) item.append(renderList(items.slice(at + 1, end)));
    list.append(item);
    at = end;
  }
  return list;
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
