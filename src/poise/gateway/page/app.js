// The page: connects the message box, the conversation, the settings and the live numbers.

import { getJson } from "./api.js";
import { Conversation } from "./conversation.js";
import { byId, copyButton } from "./dom.js";
import { watchHealth, watchStatus } from "./live.js";
import { apiKey, current, onKeyChange, setUpSettings, update } from "./settings.js";

const CLASS_HELP = {
  interactive: "Answered first, at a steady pace.",
  background: "Takes what interactive chats leave: it may wait or pause.",
};

const OUTLINE_FIRST = "outline-first";

let model = null;

// "default" names the server's model as well, so a question need not wait until the name is known.
const conversation = new Conversation({ modelName: () => model ?? "default", template, onBusy: showBusy });

setUpSettings();
setUpComposer();
setUpClasses();
setUpOutlineFirst();
setUpHeader();
copyButton(() => byId("curl").textContent, byId("curl-copy"));
showCurl();
onKeyChange(showModel);
const health = watchHealth(showModel);
watchStatus(() => health.wake());

/** Asks for the model's name and templates. It fails where a key is wanted, and is then asked again when the key changes. */
async function showModel() {
  const [list, templates] = await Promise.all(["/v1/models", "/v1/templates"].map((path) => getJson(path).catch(() => null)));
  // Not every model can have a system prompt, and an operator may keep the template for some.
  byId("outline-switch").hidden = !templates?.data?.some(({ name }) => name === OUTLINE_FIRST);
  showClassHelp();
  model = list?.data?.[0]?.id ?? model;
  byId("model").textContent = model ?? "";
  byId("model").title = model ?? "";
  showCurl();
}

function setUpComposer() {
  const prompt = byId("prompt");
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit(prompt.value);
  });
  prompt.addEventListener("input", fitPrompt);
  prompt.addEventListener("keydown", (event) => {
    // While an input method composes a character, Enter chooses it.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit(prompt.value);
  });
  byId("stop").addEventListener("click", () => conversation.stop());
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !byId("settings").open) conversation.stop();
  });
  byId("examples").addEventListener("click", (event) => {
    if (event.target.matches("button")) submit(event.target.textContent);
  });
}

function submit(text) {
  if (conversation.busy || !text.trim()) return;
  const prompt = byId("prompt");
  prompt.value = "";
  fitPrompt();
  prompt.focus();
  conversation.ask(text.trim());
}

/** The message box grows with its text, up to the limit in the style sheet. */
function fitPrompt() {
  const prompt = byId("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

function showBusy(busy) {
  const focused = document.activeElement;
  const leaving = byId(busy ? "send" : "stop");
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  // The button that had the focus has gone; without this the focus would fall back to the top of the page.
  if (focused === leaving) byId("prompt").focus();
}

function setUpClasses() {
  for (const radio of document.querySelectorAll('input[name="class"]')) {
    radio.checked = radio.value === current().requestClass;
    radio.addEventListener("change", () => {
      update({ requestClass: radio.value });
      showClassHelp();
    });
  }
  showClassHelp();
}

function showClassHelp() {
  const outline = template() ? " The answer begins with its outline." : "";
  byId("class-help").textContent = CLASS_HELP[current().requestClass] + outline;
}

function setUpOutlineFirst() {
  const outlineFirst = byId("outline-first");
  outlineFirst.checked = current().outlineFirst;
  outlineFirst.addEventListener("change", () => {
    update({ outlineFirst: outlineFirst.checked });
    showClassHelp();
  });
}

/** The template to ask for. A switch that is not offered says nothing. */
function template() {
  return current().outlineFirst && !byId("outline-switch").hidden ? OUTLINE_FIRST : null;
}

function setUpHeader() {
  byId("new-chat").addEventListener("click", () => {
    conversation.clear();
    byId("prompt").focus();
  });
  const toggle = byId("live-toggle");
  toggle.addEventListener("click", () => {
    const shown = document.body.classList.toggle("live-shown");
    toggle.setAttribute("aria-expanded", String(shown));
  });
}

function showCurl() {
  const body = JSON.stringify({ model: model ?? "default", messages: [{ role: "user", content: "Hello!" }] });
  // The key itself is not shown: people share their screens.
  const auth = apiKey() ? ' \\\n  -H "Authorization: Bearer $POISE_API_KEY"' : "";
  const type = '-H "Content-Type: application/json"';
  byId("curl").textContent = `curl ${new URL("./v1/chat/completions", location.href)} \\\n  ${type}${auth} \\\n  -d '${body}'`;
}
