// A small, safe subset of Markdown as DOM nodes: paragraphs, headings, lists, quotes, code, bold and italics.
// Where blocks begin and end is decided as the server decides it for the segments of a stream.
// Links and images stay text on purpose: a model's answer must not make the browser fetch or open anything.

import { copyButton, el } from "./dom.js";

const FENCE = /^\s*(?:(`{3,})([^`]*)|(~{3,})(.*))$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^\s*(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^\s*>[\s>]*/;
const TABLE_ROW = /^\s*\|/;
const TABLE_DASHES = /^(?=.*\|)(?=.*-)[\s|:-]+$/;
const TAB_COLUMNS = 4;
// The spans are bounded, so that text full of unmatched marks costs linear time.
const CODE = /(`{1,3})(?!`)(.{1,1000}?)(?<!`)\1(?!`)/;
const BOLD = /\*\*(?=\S)(.{1,1000}?)(?<=\S)\*\*/;
const ITALIC = /(?<!\w)\*(?=\S)(.{1,500}?)(?<=\S)\*(?!\w)/;
const INLINE = new RegExp([CODE, BOLD, ITALIC].map((pattern) => pattern.source).join("|"), "gs");

/** Renders a growing text. Blocks that did not change keep their nodes: a token costs no more late in an answer than early. */
export class MarkdownView {
  #root;
  #shown = [];
  #settled = 0;
  #nKept = 0;

  constructor(root) {
    this.#root = root;
  }

  /** Up to `settled` the text is whole blocks that will not change: they are drawn once more, and never read again. */
  render(text, settled = 0) {
    if (settled > this.#settled) {
      this.#draw(parseBlocks(text.slice(this.#settled, settled)));
      this.#settled = settled;
      this.#nKept = this.#root.children.length;
      this.#shown = [];
    }
    this.#draw(parseBlocks(text.slice(this.#settled)));
  }

  #draw(blocks) {
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
    this.#root.children[this.#nKept + index].querySelector("code").textContent = grown.text;
    return true;
  }

  #replaceFrom(index, blocks) {
    while (this.#root.children.length > this.#nKept + index) this.#root.lastElementChild.remove();
    this.#root.append(...blocks.slice(index).map(renderBlock));
  }
}

/** The letters of one line of text without its marks. */
export function plain(text) {
  return el("span", {}, ...inline(text)).textContent;
}

/** The text as a list of blocks: {kind: paragraph | heading | rule | list | code | quote, ...}. */
export function parseBlocks(text) {
  return readBlocks(text.split("\n"), false);
}

/** `inItem`: the lines are what an item of a list holds besides its first line. */
function readBlocks(lines, inItem) {
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at++;
      continue;
    }
    const [block, next] = readBlock(lines, at, inItem);
    blocks.push(block);
    at = next;
  }
  return blocks;
}

function readBlock(lines, at, inItem) {
  const line = lines[at];
  if (FENCE.test(line)) return readFence(lines, at);
  if (isTable(lines, at)) return readTable(lines, at);
  if (QUOTE.test(line)) return readQuote(lines, at);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2] }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule", text: "" }, at + 1];
  if (ITEM.test(line)) return readList(lines, at, inItem);
  return readParagraph(lines, at, inItem);
}

function readFence(lines, start) {
  const [, ticks, info, , waveInfo] = FENCE.exec(lines[start]);
  const end = endOfFence(lines, start);
  const indent = lines[start].search(/\S/);
  const body = lines.slice(start + 1, end).map((line) => line.slice(Math.min(indent, line.search(/\S|$/))));
  const language = (ticks ? info : waveInfo).trim().split(" ")[0];
  return [{ kind: "code", language, text: body.join("\n") }, end + 1];
}

/** Index of the line that closes the fence in line `start`, or of the end. */
function endOfFence(lines, start) {
  const [, ticks, , waves] = FENCE.exec(lines[start]);
  const fence = ticks ?? waves;
  const closes = (line) => line.length >= fence.length && line === fence[0].repeat(line.length);
  let end = start + 1;
  while (end < lines.length && !closes(lines[end].trim())) end++;
  return end;
}

function isTable(lines, at) {
  return TABLE_ROW.test(lines[at]) && TABLE_DASHES.test(lines[at + 1] ?? "");
}

/** A table is shown as it was written, in columns of equal letters. */
function readTable(lines, start) {
  let end = start + 2;
  while (end < lines.length && TABLE_ROW.test(lines[end])) end++;
  return [{ kind: "code", language: "", text: lines.slice(start, end).join("\n") }, end];
}

function readQuote(lines, start) {
  let end = start;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const text = lines.slice(start, end).map((line) => line.replace(QUOTE, "")).join("\n");
  return [{ kind: "quote", text }, end];
}

function readParagraph(lines, start, inItem) {
  let end = start + 1;
  while (end < lines.length && continuesParagraph(lines, end, inItem)) end++;
  const own = lines.slice(start, end).map((line) => (inItem ? line.trim() : line));
  return [{ kind: "paragraph", text: own.join("\n") }, end];
}

function continuesParagraph(lines, at, inItem) {
  const line = lines[at];
  if (line.trim() === "" || isTable(lines, at)) return false;
  if ([FENCE, HEADING, RULE, QUOTE].some((pattern) => pattern.test(line))) return false;
  // A line like "1986. Then ..." is no list in the middle of a paragraph: only 1 begins one there.
  const item = ITEM.exec(line);
  return !item || (!inItem && /\d/.test(item[2]) && Number.parseInt(item[2], 10) !== 1);
}

/** Items with all that is indented deeper than their list; a line that is not indented ends it. */
function readList(lines, start, inItem) {
  const [, space, first] = ITEM.exec(lines[start]);
  const [base, ordered] = [columns(space), /\d/.test(first)];
  const items = [];
  let at = start;
  for (; at < lines.length; at++) {
    const line = lines[at];
    const indent = columns(line);
    const item = ITEM.exec(line);
    if (line.trim() === "") items.at(-1).rest.push("");
    else if (HEADING.test(line) || RULE.test(line)) break;
    else if (item && indent <= base + 1 && (indent >= base || !inItem)) {
      if (/\d/.test(item[2]) !== ordered) break;
      items.push({ number: Number.parseInt(item[2], 10), first: item[3], rest: [] });
    } else if (indent > base) at = takeRest(lines, at, items.at(-1).rest);
    else break;
  }
  const text = lines.slice(start, at).join("\n");
  return [{ kind: "list", ordered, items: items.map(listItem), text }, at];
}

/** Adds a line to what an item holds; a fence, with all of its code. Returns the index of the last line taken. */
function takeRest(lines, at, rest) {
  const end = FENCE.test(lines[at]) ? Math.min(endOfFence(lines, at), lines.length - 1) : at;
  rest.push(...lines.slice(at, end + 1));
  return end;
}

/** The item's first line is text, whatever it looks like, and goes on as far as a paragraph would. */
function listItem({ number, first, rest }) {
  let end = 0;
  while (end < rest.length && continuesParagraph(rest, end, true)) end++;
  const text = [first, ...rest.slice(0, end).map((line) => line.trim())].join("\n");
  return { number, text, blocks: readBlocks(rest.slice(end), true) };
}

/** Width of the white space at the beginning of a line. */
function columns(line) {
  let width = 0;
  for (const letter of line) {
    if (letter === "\t") width += TAB_COLUMNS - (width % TAB_COLUMNS);
    else if (letter.trim() === "") width++;
    else break;
  }
  return width;
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
      return renderList(block);
    case "quote":
      return el("blockquote", {}, ...block.text.split(/\n(?:\s*\n)+/).map((text) => el("p", {}, ...inline(text.trim()))));
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

function renderList({ ordered, items }) {
  const list = el(ordered ? "ol" : "ul", ordered ? { start: items[0].number } : {});
  list.append(...items.map(({ text, blocks }) => el("li", {}, ...inline(text), ...blocks.map(renderBlock))));
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
