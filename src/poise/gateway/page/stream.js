// A streamed chat answer: bytes from the network in, small events out.

import { ConnectionLost, errorFrom, errorIn, send } from "./api.js";

/**
 * Server-sent events from text that may be cut anywhere, also inside a line or between CR and LF.
 * feed() returns what the new text completed: {data} for an event, {comment} for a line that starts with a colon.
 */
export class EventStreamParser {
  #rest = "";
  #data = [];

  feed(text) {
    const items = [];
    for (const line of this.#lines(text)) {
      if (line === "") this.#dispatch(items);
      else if (line.startsWith(":")) items.push({ comment: line.slice(1).trim() });
      else this.#field(line);
    }
    return items;
  }

  #lines(text) {
    this.#rest += text;
    // A CR at the very end may be the first half of CRLF: it stays for the next call.
    const held = this.#rest.endsWith("\r") ? "\r" : "";
    const lines = this.#rest.slice(0, this.#rest.length - held.length).split(/\r\n|\r|\n/);
    this.#rest = lines.pop() + held;
    return lines;
  }

  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    if (name !== "data") return;
    const value = colon < 0 ? "" : line.slice(colon + 1);
    this.#data.push(value.startsWith(" ") ? value.slice(1) : value);
  }

  #dispatch(items) {
    if (this.#data.length) items.push({ data: this.#data.join("\n") });
    this.#data = [];
  }
}

/**
 * Sends a chat request and yields, as they arrive:
 *   {id}                          the response's id, first of all
 *   {by}                          who answers, where it may be another server than this one
 *   {waiting: {position, etaMs}}  while it is queued
 *   {thought}                     a piece of the reasoning that comes before the answer
 *   {text, marks}                 a piece of the answer, and what it made certain of its segments; either may be empty
 *   {finish}                      how it ended: the finish reason, or why it was cut short
 *   {usage}                       the server's own token counts
 * Throws ApiError, ConnectionLost, or the signal's AbortError. What was yielded before stays valid.
 */
export async function* chat(request, signal) {
  const response = await send("/v1/chat/completions", { json: request, signal, headers: { Accept: "text/event-stream" } });
  if (!response.ok) throw await errorFrom(response);
  const id = response.headers.get("X-Poise-Response-Id");
  if (id) yield { id };
  const by = response.headers.get("X-Poise-Backend");
  if (by) yield { by };
  let ended = false;
  for await (const item of readItems(response.body)) {
    if (item.data === "[DONE]") return;
    for (const event of eventsIn(item)) {
      ended ||= "finish" in event;
      yield event;
    }
  }
  if (!ended) throw new ConnectionLost("The connection ended before the answer was complete.");
}

async function* readItems(body) {
  const parser = new EventStreamParser();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { value, done } = await nextChunk(reader);
      if (done) return;
      yield* parser.feed(decoder.decode(value, { stream: true }));
    }
  } finally {
    // Reached early when the consumer stops: the server then sees the connection close and ends its work.
    reader.cancel().catch(() => {});
  }
}

async function nextChunk(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ConnectionLost("The connection broke before the answer was complete.");
  }
}

function eventsIn({ comment, data }) {
  if (comment !== undefined) return queueComment(comment);
  const chunk = parseJson(data);
  const error = errorIn(chunk);
  if (error) throw error;
  const choice = chunk.choices?.[0];
  const events = [];
  if (choice?.delta?.reasoning_content) events.push({ thought: choice.delta.reasoning_content });
  const [text, marks] = [choice?.delta?.content ?? "", choice?.segments ?? []];
  if (text || marks.length) events.push({ text, marks });
  if (choice?.finish_reason) events.push({ finish: chunk.poise?.outcome ?? choice.finish_reason });
  if (chunk.usage) events.push({ usage: chunk.usage });
  return events;
}

/** ": queued position=3 eta_ms=1200". Other comments only keep the connection alive. */
function queueComment(comment) {
  if (!/^queued\b/.test(comment)) return [];
  const values = Object.fromEntries([...comment.matchAll(/(\w+)=(\d+)/g)].map(([, name, value]) => [name, Number(value)]));
  return [{ waiting: { position: values.position, etaMs: values.eta_ms } }];
}

function parseJson(data) {
  try {
    return JSON.parse(data) ?? {};
  } catch {
    throw new ConnectionLost("The server sent something that this page cannot read.");
  }
}
