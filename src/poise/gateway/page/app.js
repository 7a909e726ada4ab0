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

let model = null;

// "default" names the server's model as well, so a question need not wait until the name is known.
const conversation = new Conversation({ modelName: () => model ?? "default", onBusy: showBusy });

setUpSettings();
setUpComposer();
setUpClasses();
setUpHeader();
copyButton(() => byId("curl").textContent, byId("curl-copy"));
showCurl();
onKeyChange(showModel);
const health = watchHealth(showModel);
watchStatus(() => health.wake());

/** Asks for the model's name. It fails where a key is wanted, and is then asked again when the key changes. */
async function showModel() {
  const list = await getJson("/v1/models").catch(() => null);
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
  byId("class-help").textContent = CLASS_HELP[current().requestClass];
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
  byId("curl").textContent = `curl ${location.origin}/v1/chat/completions \\\n  ${type}${auth} \\\n  -d '${body}'`;
}
