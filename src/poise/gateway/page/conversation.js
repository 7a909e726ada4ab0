// The conversation: its turns on the page, the request that is under way, and the scroll position.

import { Answer } from "./answer.js";
import { ApiError, cancel } from "./api.js";
import { byId, el } from "./dom.js";
import { current, openSettings } from "./settings.js";
import { chat } from "./stream.js";

const NEAR_THE_END_PX = 48;
const SERVICE_TIERS = { interactive: "default", background: "flex" };

export class Conversation {
  #turns = [];
  #abort = null;
  #responseId = null;
  #following = true;
  #scroller = byId("scroller");
  #modelName;
  #template;
  #onBusy;

  /**
   * `modelName()` is the model to ask for, `template()` the name of the template to use, if any; `onBusy(bool)` runs when an
   * answer begins and ends.
   */
  constructor({ modelName, template, onBusy }) {
    this.#modelName = modelName;
    this.#template = template;
    this.#onBusy = onBusy;
    this.#scroller.addEventListener("scroll", () => this.#noticeScroll(), { passive: true });
    byId("to-latest").addEventListener("click", () => this.#follow());
    // A taller message box or a turned phone must not hide the end of the answer.
    new ResizeObserver(() => this.#keepUp()).observe(this.#scroller);
  }

  get busy() {
    return this.#abort !== null;
  }

  ask(prompt) {
    const question = el("p", { className: "question" }, el("span", { className: "sr-only", textContent: "You: " }), prompt);
    const props = { className: "turn", "aria-label": `Turn ${this.#turns.length + 1}` };
    const turn = { prompt, answer: null, element: el("section", props, question) };
    this.#turns.push(turn);
    byId("welcome").hidden = true;
    byId("turns").append(turn.element);
    return this.#run(turn);
  }

  /** Asks for the last answer again, with the present settings. */
  retry() {
    const turn = this.#turns.at(-1);
    return turn && !this.busy ? this.#run(turn) : undefined;
  }

  stop() {
    if (this.#abort && this.#responseId) cancel(this.#responseId);
    this.#abort?.abort();
  }

  clear() {
    this.stop();
    this.#turns = [];
    byId("turns").replaceChildren();
    byId("welcome").hidden = false;
    this.#follow();
    announce("New chat");
  }

  async #run(turn) {
    const abort = (this.#abort = new AbortController());
    this.#responseId = null;
    const answer = this.#place(turn);
    this.#onBusy(true);
    this.#follow();
    try {
      await this.#stream(turn, answer, abort.signal);
    } catch (error) {
      this.#explain(answer, error, abort.signal);
    }
    // A new chat may have taken this one's place meanwhile.
    if (this.#abort !== abort) return;
    this.#abort = null;
    this.#onBusy(false);
  }

  #place(turn) {
    const answer = new Answer(() => this.#keepUp());
    turn.answer?.element.remove();
    turn.answer = answer;
    turn.element.append(answer.element);
    // Only the last answer can be asked for again: an earlier one is part of what followed.
    for (const button of byId("turns").querySelectorAll(".retry")) button.remove();
    return answer;
  }

  async #stream(turn, answer, signal) {
    const request = this.#request(turn);
    let reason = "unknown";
    for await (const event of chat(request, signal)) {
      if (event.id) this.#responseId = event.id;
      else if (event.by) answer.from(event.by);
      else if (event.waiting) announce(answer.wait(event.waiting));
      else if (event.thought) answer.think(event.thought);
      else if (event.marks) this.#grow(answer, event);
      else if (event.finish) reason = event.finish;
      else if (event.usage) answer.usage(event.usage);
    }
    announce(answer.finish(reason));
    answer.offer(this.#retryButton());
  }

  #grow(answer, { text, marks }) {
    if (text && !answer.text) announce("The answer has begun");
    answer.append(text, marks);
  }

  #explain(answer, error, signal) {
    if (signal.aborted) {
      announce(answer.stopped());
      answer.offer(this.#retryButton());
      return;
    }
    const keyWanted = error instanceof ApiError && error.status === 401;
    answer.fail(error, keyWanted ? [keyButton(), this.#retryButton()] : [this.#retryButton()]);
  }

  #retryButton() {
    return el("button", { type: "button", className: "small retry", textContent: "Retry", onclick: () => this.retry() });
  }

  #request(turn) {
    const { system, temperature, maxTokens, requestClass } = current();
    const template = this.#template();
    const request = {
      model: this.#modelName(),
      messages: this.#messages(turn, system, template ? "user" : "system"),
      stream: true,
      stream_options: { include_usage: true, segments: true },
      service_tier: SERVICE_TIERS[requestClass],
    };
    if (temperature !== null) request.temperature = temperature;
    if (maxTokens !== null) request.max_tokens = maxTokens;
    if (template) request.template = template;
    return request;
  }

  /**
   * Turns without an answer are left out: many models accept nothing but strictly alternating roles. A template is the whole
   * system prompt; the person's own then goes ahead of the first message.
   */
  #messages(turn, system, systemRole) {
    const messages = system.trim() && systemRole === "system" ? [{ role: "system", content: system }] : [];
    for (const { prompt, answer } of this.#turns.slice(0, this.#turns.indexOf(turn))) {
      if (answer.text) messages.push({ role: "user", content: prompt }, { role: "assistant", content: answer.text });
    }
    messages.push({ role: "user", content: turn.prompt });
    if (system.trim() && systemRole === "user") messages[0].content = `${system.trim()}\n\n${messages[0].content}`;
    return messages;
  }

  #noticeScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#following = scrollHeight - scrollTop - clientHeight < NEAR_THE_END_PX;
    byId("to-latest").hidden = this.#following;
  }

  #follow() {
    this.#following = true;
    this.#keepUp();
  }

  /** Shows the end of the conversation, unless the reader has scrolled away from it. */
  #keepUp() {
    if (this.#following) this.#scroller.scrollTop = this.#turns.length ? this.#scroller.scrollHeight : 0;
    else byId("to-latest").hidden = false;
  }
}

function keyButton() {
  const onclick = () => openSettings("api-key");
  return el("button", { type: "button", className: "small", textContent: "Enter the API key", onclick });
}

/** Tells screen readers; the answer itself is not announced token by token. */
function announce(text) {
  byId("announcer").textContent = text;
}
