// Requests to the server this page came from.

import { isNumber } from "./format.js";
import { apiKey } from "./settings.js";

const POLL_TIMEOUT_MS = 5000;

/** The server said no, in OpenAI's error format or in any other way. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfterS = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/** The connection could not be made, or ended before the answer was complete. */
export class ConnectionLost extends Error {}

/** fetch() with the key, and with a ConnectionLost in place of the browser's own words. */
export async function send(path, { json, signal, headers = {}, key = apiKey() } = {}) {
  const options = { headers: { ...headers }, signal, cache: "no-store" };
  if (key) options.headers.Authorization = `Bearer ${sendable(key)}`;
  if (json !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(json);
  }
  try {
    return await fetch(`.${path}`, options); // beside the page, wherever a proxy shows it
  } catch (error) {
    if (signal?.aborted && error.name !== "TimeoutError") throw error;
    throw new ConnectionLost("The server cannot be reached.");
  }
}

/** The browser refuses to send anything else in a header, with an error that nobody would understand. */
function sendable(key) {
  if (/^[!-~]+$/.test(key)) return key;
  throw new ApiError("The key has spaces or letters that no key can have.", { status: 401 });
}

/** Ends a request on the server. Closing its stream does that too; an error is of no use to anybody who wants to stop. */
export function cancel(id) {
  send(`/v1/requests/${encodeURIComponent(id)}/cancel`, { json: {} }).catch(() => {});
}

/** A small JSON document. `accept` lists the statuses whose body is wanted besides 200. */
export async function getJson(path, accept = [], key = apiKey()) {
  const response = await send(path, { signal: AbortSignal.timeout(POLL_TIMEOUT_MS), key });
  if (!response.ok && !accept.includes(response.status)) throw await errorFrom(response);
  try {
    return await response.json();
  } catch {
    throw new ApiError(`${path} did not answer with JSON.`, { status: response.status });
  }
}

/** The error that a failed response carries. */
export async function errorFrom(response) {
  const seconds = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const about = { status: response.status, retryAfterS: isNumber(seconds) ? seconds : null };
  const body = await response.json().catch(() => null);
  return errorIn(body, about) ?? new ApiError(`The server answered with status ${response.status}.`, about);
}

/** The error in a JSON body of the form {"error": {"message": ...}}, or null if it holds none. */
export function errorIn(body, about = {}) {
  const error = body?.error;
  if (!error) return null;
  const message = typeof error === "string" ? error : error.message;
  const text = String(message || "The server reported an error without a message.");
  return new ApiError(text, { ...about, code: error.code ?? null });
}
