// What operators see: the table of requests, one of them in detail with what can be done about it, and the tenants.

import { adminKey, setAdminKey } from "./adminkey.js";
import { errorFrom, getJson, send } from "./api.js";
import { byId, el } from "./dom.js";
import { setText } from "./figures.js";
import { count, duration } from "./format.js";
import { Poller } from "./live.js";
import { RequestView } from "./requestview.js";

const PERIOD_MS = 2000;
const ENDED = 20;

/** Starts the table. `showTenants(pools)` of what is returned tells it who holds KV cells. */
export function setUpRequests() {
  const table = new RequestTable(byId("rows"), (id) => view.open(id));
  const view = new RequestView((id) => table.focus(id));
  const tenants = new TenantTable(byId("tenants"));
  const poller = new Poller(async () => {
    try {
      const { data, ended } = await getJson(`/admin/requests?ended=${ENDED}`, [], adminKey());
      showProblem(null);
      table.show([...data, ...ended], view.id);
      tenants.requests = [...data, ...ended];
      tenants.show();
      await view.refresh();
      return PERIOD_MS;
    } catch (error) {
      showProblem(error);
      // A key that is wanted, or a caller that may not: asking again would change nothing.
      return error.status === 401 || error.status === 403 ? null : PERIOD_MS;
    }
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setAdminKey(byId("admin-key").value.trim());
    byId("admin-key").value = "";
    poller.wake();
  });
  byId("key-forget").addEventListener("click", () => {
    setAdminKey("");
    view.close();
    poller.wake();
  });
  for (const button of byId("view-actions").querySelectorAll("button")) {
    button.addEventListener("click", async () => {
      view.tell(await act(view.id, button.dataset.action), button.dataset.action);
      poller.wake();
    });
  }
  return { showTenants: (pools) => tenants.showCells(pools) };
}

/** Null when it was done, or the error. */
async function act(id, action) {
  try {
    const response = await send(`/admin/requests/${encodeURIComponent(id)}/${action}`, { json: {}, key: adminKey() });
    return response.ok ? null : await errorFrom(response);
  } catch (error) {
    return error;
  }
}

function showProblem(error) {
  const keyWanted = error?.status === 401;
  byId("key-form").hidden = !keyWanted;
  byId("requests-body").hidden = Boolean(error);
  byId("key-forget").hidden = !adminKey();
  const wrong = keyWanted && adminKey() ? "This is not an admin key of the server." : "";
  const message = keyWanted ? wrong : (error?.message ?? "");
  setText(byId("requests-problem"), message);
  byId("requests-problem").hidden = !message;
}

/** Rows are kept by id, so that a refresh takes the focus from nobody. */
class RequestTable {
  constructor(body, onOpen) {
    this.body = body;
    this.onOpen = onOpen;
    this.rows = new Map();
    body.addEventListener("click", ({ target }) => {
      const row = target.closest("tr");
      if (row) onOpen(row.dataset.id);
    });
    body.addEventListener("keydown", (event) => this.move(event));
  }

  show(requests, openId) {
    byId("no-requests").hidden = requests.length > 0;
    const rows = requests.map((request) => this.fill(this.rows.get(request.id) ?? this.make(request.id), request, openId));
    for (const [id, row] of this.rows) {
      if (!rows.includes(row)) {
        row.remove();
        this.rows.delete(id);
      }
    }
    // Moving a node would take the focus from it: only what stands elsewhere is moved.
    rows.forEach((row, index) => {
      if (this.body.children[index] !== row) this.body.insertBefore(row, this.body.children[index] ?? null);
    });
  }

  focus(id) {
    this.rows.get(id)?.querySelector("button").focus();
  }

  /** Arrow keys go from row to row. */
  move(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const to = step && event.target.closest("tr")?.[step];
    if (!to) return;
    event.preventDefault();
    to.querySelector("button").focus();
  }

  make(id) {
    const button = el("button", { type: "button", className: "row-button", "aria-controls": "view", title: id });
    button.textContent = id.slice(-8);
    const cells = Array.from({ length: 7 }, () => el("td"));
    const row = el("tr", {}, el("th", { scope: "row" }, button), ...cells);
    row.dataset.id = id;
    this.rows.set(id, row);
    return row;
  }

  fill(row, request, openId) {
    const state = request.outcome ? `ended: ${request.error ?? request.outcome}` : request.state;
    const values = [
      request.tenant,
      request.class,
      state,
      count(request.prompt_tokens),
      count(request.cached_tokens),
      count(request.output_tokens),
      duration(request.age_ms),
    ];
    values.forEach((value, index) => setText(row.children[index + 1], value));
    row.dataset.state = request.outcome ? "ended" : request.state;
    const isOpen = String(request.id === openId);
    const button = row.querySelector("button");
    if (button.getAttribute("aria-expanded") !== isOpen) button.setAttribute("aria-expanded", isOpen);
    return row;
  }
}

/** Who holds what: cells from the status, the rest from the requests that are listed. */
class TenantTable {
  constructor(body) {
    this.body = body;
    this.requests = [];
    this.cells = {};
  }

  showCells(pools) {
    this.cells = {};
    for (const { cells_by_tenant: cells } of pools) {
      for (const [tenant, n] of Object.entries(cells ?? {})) this.cells[tenant] = (this.cells[tenant] ?? 0) + n;
    }
    this.show();
  }

  show() {
    const names = [...new Set([...this.requests.map(({ tenant }) => tenant), ...Object.keys(this.cells)])].sort();
    const output = (of) => of.reduce((sum, { output_tokens: n }) => sum + n, 0);
    const allCells = Object.values(this.cells).reduce((sum, n) => sum + n, 0);
    const allOutput = output(this.requests);
    const rows = names.map((name) => {
      const own = this.requests.filter(({ tenant }) => tenant === name);
      const live = (wanted) => own.filter(({ state }) => wanted.includes(state)).length;
      const waiting = live(["queued", "paused", "swapped"]);
      const cells = this.cells[name] ?? 0;
      return [
        name || "all others",
        count(live(["running"])),
        count(waiting),
        count(cells),
        share(cells, allCells),
        count(output(own)),
        share(output(own), allOutput),
      ];
    });
    while (this.body.children.length > rows.length) this.body.lastChild.remove();
    rows.forEach((values, index) => {
      if (!this.body.children[index]) this.body.append(tenantRow());
      values.forEach((value, cell) => setText(this.body.children[index].children[cell], value));
    });
  }
}

function tenantRow() {
  return el("tr", {}, el("th", { scope: "row" }), ...Array.from({ length: 6 }, () => el("td")));
}

function share(part, whole) {
  return whole ? `${Math.round((100 * part) / whole)} %` : "–";
}
