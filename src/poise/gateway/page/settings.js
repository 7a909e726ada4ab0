// What the person chose, kept in this browser; and the settings drawer.

import { byId } from "./dom.js";

const STORE = "poise.settings";
const KEY_STORE = "poise.api-key";
const DEFAULTS = { system: "", temperature: null, maxTokens: null, requestClass: "interactive", outlineFirst: false };

const settings = { ...DEFAULTS, ...readStore() };
const keyListeners = [];
let key = readSession();

/** The present settings; a null number leaves the choice to the server. */
export const current = () => settings;

export const apiKey = () => key;

/** `listener` runs after the key has changed. */
export function onKeyChange(listener) {
  keyListeners.push(listener);
}

export function update(changes) {
  Object.assign(settings, changes);
  // Storage can be switched off in the browser; the settings then last as long as the page.
  attempt(() => localStorage.setItem(STORE, JSON.stringify(settings)));
}

/** Opens the drawer; with `field`, at that field. */
export function openSettings(field) {
  fillForm();
  byId("settings").showModal();
  if (field) byId(field).focus();
}

export function setUpSettings() {
  const drawer = byId("settings");
  byId("settings-open").addEventListener("click", () => openSettings());
  byId("settings-form").addEventListener("input", readForm);
  byId("settings-reset").addEventListener("click", resetForm);
  drawer.addEventListener("close", () => setKey(byId("api-key").value.trim()));
  drawer.addEventListener("click", (event) => {
    if (event.target === drawer) drawer.close(); // the backdrop; the form covers the drawer itself
  });
}

function fillForm() {
  byId("system").value = settings.system;
  byId("temperature").value = settings.temperature ?? "";
  byId("max-tokens").value = settings.maxTokens ?? "";
  byId("api-key").value = key;
}

function readForm() {
  update({ system: byId("system").value, temperature: numberIn("temperature"), maxTokens: numberIn("max-tokens") });
}

function resetForm() {
  const { requestClass, outlineFirst } = settings; // their switches are not in the drawer
  update({ ...DEFAULTS, requestClass, outlineFirst });
  setKey("");
  fillForm();
}

/** The number in a field; null when it is empty or outside the field's range (the field then shows that it is wrong). */
function numberIn(id) {
  const input = byId(id);
  return input.value !== "" && input.validity.valid ? input.valueAsNumber : null;
}

function setKey(value) {
  if (value === key) return;
  key = value;
  attempt(() => (key ? sessionStorage.setItem(KEY_STORE, key) : sessionStorage.removeItem(KEY_STORE)));
  for (const listener of keyListeners) listener();
}

function readStore() {
  return attempt(() => JSON.parse(localStorage.getItem(STORE) ?? "{}")) ?? {};
}

function readSession() {
  return attempt(() => sessionStorage.getItem(KEY_STORE)) ?? "";
}

function attempt(action) {
  try {
    return action();
  } catch {
    return null;
  }
}
