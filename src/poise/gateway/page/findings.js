// What to look at now: the server's findings, each in its own words, with the requests that it is about.

import { byId, el } from "./dom.js";
import { setText } from "./figures.js";
import { duration } from "./format.js";

const IDS_SHOWN = 5;

/** Rows are kept by name, so that a screen reader hears of each finding once. `onOpen(id)` opens a request. */
export function showFindings(findings, onOpen) {
  const list = byId("findings");
  const names = findings.map(({ finding }) => finding);
  for (const row of [...list.children]) if (!names.includes(row.dataset.finding)) row.remove();
  for (const found of findings) {
    const known = [...list.children].find((row) => row.dataset.finding === found.finding);
    fill(known ?? list.appendChild(make(found.finding)), found, onOpen);
  }
  byId("findings-part").hidden = !findings.length;
}

function make(name) {
  const text = el("p", { className: "finding-text" });
  return el("li", { className: "finding", "data-finding": name }, text, el("p", { className: "help" }), el("p"));
}

function fill(row, { text, age_s: age, runbook, detail }, onOpen) {
  const [words, help, about] = row.children;
  setText(words, `${text}.`);
  setText(help, `For ${duration(1000 * Math.floor(age))}. What to do: ${runbook}${detail?.tenant ? `. Tenant ${detail.tenant}` : ""}`);
  const ids = [...Object.keys(detail?.requests ?? {}), detail?.request].filter(Boolean);
  if (about.dataset.ids === ids.join(" ")) return;
  about.dataset.ids = ids.join(" ");
  about.replaceChildren(...ids.slice(0, IDS_SHOWN).map((id) => button(id, onOpen)));
  if (ids.length > IDS_SHOWN) about.append(` and ${ids.length - IDS_SHOWN} more`);
}

function button(id, onOpen) {
  const node = el("button", { type: "button", className: "small", title: id, textContent: id.slice(-8) });
  node.addEventListener("click", () => onOpen(id));
  return node;
}
