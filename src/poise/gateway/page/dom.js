// Small helpers around the DOM. Text always enters the page as text nodes; nothing in this folder parses HTML.

/** The element with this id; it is part of the page, so a missing one is a mistake in it. */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found;
}

/** A new element. `props` are DOM properties; names with a dash are attributes. Strings among `children` become text. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** Puts text on the clipboard. True if it got there. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // No permission: try the old way.
    }
  }
  // Browsers offer the clipboard API on https and localhost only, and this page is often opened over plain http in a
  // home network.
  const area = el("textarea", { value: text, className: "sr-only" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}

/** A button that copies what `text()` returns, and says how that went. */
export function copyButton(text, button = el("button", { type: "button", className: "small", textContent: "Copy" })) {
  const label = button.textContent;
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(text())) ? "Copied" : "Not allowed";
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}
