// The dashboard: reads the server's figures once a second while it is visible, and shows them.

import { adminKey } from "./adminkey.js";
import { getJson } from "./api.js";
import { setUpCharts } from "./charts.js";
import { byId } from "./dom.js";
import { showCards, showFacts, showHealth, showSlots, showUnreachable } from "./figures.js";
import { showFindings } from "./findings.js";
import { Poller } from "./live.js";
import { logIn } from "./login.js";
import { setUpRequests } from "./requests.js";
import { apiKey } from "./settings.js";

const PERIOD_MS = 1000;
const SAMPLES_MAX = 600;

await logIn();

const charts = setUpCharts(byId("charts"));
const requests = setUpRequests();
const samples = [];
let next = 0;

new Poller(async () => {
  try {
    const [status, history] = await Promise.all([
      getJson("/status", [], adminKey() || apiKey()),
      getJson(`/status/history?since=${next}`, [], adminKey() || apiKey()),
    ]);
    remember(history);
    showHealth(status);
    showFacts(status, samples.at(-1));
    showCards(status, samples);
    showSlots(status.pools ?? []);
    showFindings(status.findings, requests.open);
    requests.showTenants(status.pools ?? []);
    charts.show(samples);
  } catch (error) {
    showUnreachable(error.message);
  }
  return PERIOD_MS;
});

/** A server that was started again counts from 0, and tells everything when it is asked for more than it has. */
function remember(history) {
  if (history.next < next) samples.length = 0;
  samples.push(...history.samples);
  samples.splice(0, samples.length - SAMPLES_MAX);
  next = history.next;
}
