// What a conversation is held with: a system prompt, and how its answers are drawn.

import { find, make } from "./dom.js";

// `rest`: where a slider stands while nothing is chosen; those without have none.
const FIELDS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, rest: 1, hint: "0 is always the likeliest" },
  { name: "top_p", label: "Top-p", min: 0, max: 1, step: 0.01, rest: 1, hint: "the likeliest tokens with this share" },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: 0.01, rest: 0, hint: "of the likeliest token's share" },
  { name: "top_k", label: "Top-k", min: 0, max: 1048576, step: 1, hint: "0 for all" },
  { name: "max_tokens", label: "Longest answer", min: 1, max: 1073741824, step: 1, hint: "tokens" },
  { name: "repetition_penalty", label: "Repetition penalty", min: 0.01, max: 100, step: 0.01, hint: "1 is none" },
  { name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.1 },
  { name: "seed", label: "Seed", step: 1, hint: "the same again" },
];
const STOPS = 16;

export class Settings {
  #conversation;
  #changed;
  #inputs = new Map();

  /** `changed` is called when somebody has changed something. */
  constructor(changed) {
    this.#changed = changed;
    find("sampling").append(...FIELDS.map((field) => this.#field(field)));
    find("system").addEventListener("input", () => this.#write());
    find("stops").addEventListener("input", () => this.#write());
    find("reset").addEventListener("click", () => this.#reset());
  }

  show(conversation) {
    this.#conversation = conversation;
    find("system").value = conversation.system;
    find("stops").value = (conversation.sampling.stop ?? []).join("\n");
    for (const [name, input] of this.#inputs) {
      input.value = conversation.sampling[name] ?? "";
      input.dispatchEvent(new Event("shown"));
    }
  }

  /** What a model takes where nothing is chosen, as far as that is known. */
  advise(sampling) {
    for (const [name, input] of this.#inputs) input.placeholder = sampling[name] ?? "default";
  }

  #field({ name, label, min, max, step, rest, hint }) {
    const slider = rest !== undefined;
    const id = `sampling-${name}`;
    const range = min === undefined ? {} : { min, max };
    const input = make("input", { id, type: "number", step: slider ? "any" : step, placeholder: "default", inputMode: "decimal", ...range });
    const told = make("p", { className: "error", id: `${id}-error`, hidden: true });
    input.setAttribute("aria-describedby", told.id);
    this.#inputs.set(name, input);
    input.addEventListener("input", () => {
      told.textContent = input.validationMessage;
      told.hidden = input.validity.valid;
      input.setAttribute("aria-invalid", String(!input.validity.valid));
      this.#write();
    });
    input.addEventListener("shown", () => { told.hidden = true; input.removeAttribute("aria-invalid"); });
    const head = make("div", { className: "row" }, make("label", { htmlFor: id }, label, ...(hint ? [make("small", { textContent: hint })] : [])), input);
    return make("div", { className: "setting" }, head, ...(slider ? [slide(label, input, rest, { min, max, step })] : []), told);
  }

  #write() {
    const sampling = {};
    for (const [name, input] of this.#inputs) {
      if (input.value !== "" && input.validity.valid) sampling[name] = input.valueAsNumber;
    }
    const stops = find("stops").value.split("\n").filter(Boolean).slice(0, STOPS);
    if (stops.length) sampling.stop = stops;
    Object.assign(this.#conversation, { sampling, system: find("system").value });
    this.#changed();
  }

  #reset() {
    Object.assign(this.#conversation, { sampling: {}, system: "" });
    this.show(this.#conversation);
    this.#changed();
  }
}

function slide(label, input, rest, range) {
  const made = make("input", { type: "range", "aria-label": label, ...range });
  const follow = () => {
    made.value = input.value === "" ? rest : input.value;
    made.classList.toggle("unset", input.value === "");
    made.setAttribute("aria-valuetext", input.value === "" ? "default" : input.value);
  };
  made.addEventListener("input", () => { input.value = made.value; input.dispatchEvent(new Event("input")); });
  input.addEventListener("input", follow);
  input.addEventListener("shown", follow);
  follow();
  return made;
}
