// Elements, made of text that is only ever text.

export const find = (id) => document.getElementById(id);

/** An element with properties, attributes where a name has a dash or is `role`, and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name.includes("-") || name === "role" || name === "scope") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

export function button(text, does, properties = {}) {
  return make("button", { type: "button", textContent: text, onclick: does, ...properties });
}

/** Tokens a second, as exact as anybody reads it. */
export const speed = (rate) => (rate < 100 ? rate.toFixed(1) : Math.round(rate).toLocaleString("en"));

/** Put a text where others can paste it from. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without TLS there is no clipboard but this.
    const field = make("textarea", { value: text, className: "hidden" });
    const focused = document.activeElement;
    (document.querySelector("dialog[open]") ?? document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    focused?.focus();
  }
}

/** A button that copies, and says that it has. */
export function copier(text, properties) {
  const made = button("Copy", async () => {
    await copy(text());
    made.textContent = "Copied";
    setTimeout(() => { made.textContent = "Copy"; }, 1500);
  }, properties);
  return made;
}

export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

let hide; // when the toast goes

/** Say something in passing; `undo` is what its button does. */
export function toast(text, undo) {
  const place = find("toast");
  const [words, back] = place.children;
  words.textContent = text;
  back.hidden = !undo;
  back.onclick = () => { place.hidden = true; undo(); };
  place.hidden = false;
  clearTimeout(hide);
  hide = setTimeout(() => { place.hidden = true; }, 8000);
}

export function announce(text) {
  find("announce").textContent = text;
}
