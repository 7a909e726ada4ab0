// The admin key, where the server wants one: kept in this tab only.

const STORE = "poise.admin-key";

let key = attempt(() => sessionStorage.getItem(STORE)) ?? "";

export const adminKey = () => key;

export function setAdminKey(value) {
  key = value;
  // Storage can be switched off in the browser; the key then lasts as long as the page.
  attempt(() => (key ? sessionStorage.setItem(STORE, key) : sessionStorage.removeItem(STORE)));
}

function attempt(action) {
  try {
    return action();
  } catch {
    return null;
  }
}
