// A code in the page's address, which `poise dashboard` prints, is given for the server's token and taken out of the address.

import { setAdminKey } from "./adminkey.js";
import { send } from "./api.js";

/** Resolves when there is nothing more to be done, with a code or without one. */
export async function logIn() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (!code) return;
  history.replaceState(null, "", location.pathname);
  try {
    const response = await send("/admin/login", { json: { code }, key: "" });
    if (response.ok) setAdminKey((await response.json()).key);
  } catch {
    // The page says by itself that the server cannot be reached.
  }
}
