// What an administrator sees and sets: load as it is now, keys, and what was used.

import { ask } from "./api.js";
import { button, copy, find, make, speed } from "./dom.js";

const EVERY_MS = 1000;
const USAGE_EVERY = 4; // times that the load is read
const KEPT = 60; // samples of a curve
const DAY_S = 86_400;
const SVG = "http://www.w3.org/2000/svg";

export class Admin {
  #timer = null;
  #curves = new Map(); // samples by model and figure
  #keys = [];

  constructor() {
    find("new-key").addEventListener("click", () => open("create"));
    find("create-form").addEventListener("submit", (event) => { event.preventDefault(); this.#create(); });
    find("copy-key").addEventListener("click", () => copy(find("key-text").textContent));
    find("hide-key").addEventListener("click", () => this.#forget());
    for (const name of ["create", "revoke"]) find(`cancel-${name}`).addEventListener("click", () => find(`${name}-dialog`).close());
    for (const id of ["usage-by", "usage-days"]) find(id).addEventListener("change", () => this.#try(() => this.#readUsage()));
  }

  /** Begin to look; `hasKeys` says whether this server has keys. */
  async show(hasKeys) {
    find("keys").hidden = find("usage").hidden = !hasKeys;
    find("admin").hidden = false;
    clearInterval(this.#timer);
    let beats = 0;
    this.#timer = setInterval(() => {
      if (document.hidden) return;
      this.#try(() => this.#readLoad());
      beats += 1;
      if (hasKeys && beats % USAGE_EVERY === 0) this.#try(() => this.#readUsage());
    }, EVERY_MS);
    await this.#try(() => this.#readLoad());
    if (!hasKeys) return;
    await this.#try(() => this.#readKeys());
    await this.#try(() => this.#readUsage());
  }

  hide() {
    clearInterval(this.#timer);
    this.#forget();
    find("admin").hidden = true;
  }

  async #try(does) {
    const told = find("admin-error");
    try {
      await does();
      told.hidden = true;
    } catch (error) {
      told.textContent = error.message;
      told.hidden = false;
    }
  }

  async #readLoad() {
    const load = await ask("admin/load");
    find("load-cards").replaceChildren(...load.models.map((model) => this.#card(model)));
  }

  #card(model) {
    const rate = model.requests ? (model.tokens_per_second ?? 0) : 0; // the last steps' rate is no rate when idle
    const figures = [
      ["Tokens/s", rate, speed(rate)],
      ["In the batch", model.requests ? (model.running ?? 0) : 0],
      ["In the queue", model.requests ? (model.waiting ?? 0) : 0],
    ];
    const state = model.loaded ? (model.requests ? `${count(model.requests)} at work` : "idle") : "not loaded";
    return make("div", { className: "card" },
      make("div", { className: "row" }, make("h4", { textContent: model.name }), make("span", { className: "state", textContent: state })),
      make("dl", {}, ...figures.map(([name, value, text]) => this.#figure(model.name, name, value, text ?? count(value)))));
  }

  #figure(model, name, value, text) {
    const id = `${name} ${model}`;
    const samples = [...(this.#curves.get(id) ?? []), value].slice(-KEPT);
    this.#curves.set(id, samples);
    return make("div", {}, make("dt", { textContent: name }), make("dd", {}, text, curve(samples)));
  }

  async #readKeys() {
    this.#keys = (await ask("admin/keys")).keys;
    const rows = this.#keys.map((key) => [
      key.name, key.id, key.role, key.models ? key.models.join(", ") : "all", limits(key), date(key.created), state(key),
      key.revoked === null ? button("Revoke", () => this.#revoke(key), { className: "quiet", "aria-label": `Revoke ${key.name}` }) : "",
    ]);
    fill("keys-table", ["Name", "Id", "Role", "Models", "Limits", "Made", "State", ""], rows, "There are no keys yet.");
  }

  async #readUsage() {
    const days = Number(find("usage-days").value);
    const since = days ? Math.floor(Date.now() / 1000) - days * DAY_S : 0;
    const by = find("usage-by").value;
    const { usage } = await ask(`admin/usage?by=${by}&since=${since}`);
    const names = new Map(this.#keys.map((key) => [key.id, key.name]));
    const rows = usage.map((sum) => [
      names.get(sum.group) ?? (by === "day" ? sum.group.slice(0, 10) : sum.group), count(sum.requests), count(sum.prompt_tokens),
      count(sum.cached_tokens), count(sum.completion_tokens), count(sum.total_tokens), sum.joules === null ? "–" : count(Math.round(sum.joules)),
    ]);
    const head = find("usage-by").selectedOptions[0].textContent;
    fill("usage-table", [head, "Requests", "Prompt", "of it cached", "Completion", "Tokens", "Joules"], rows, "Nothing was used in this time.");
  }

  async #create() {
    const form = new FormData(find("create-form"));
    const number = (name) => (form.get(name) ? Number(form.get(name)) : null);
    const models = form.get("models").split(",").map((name) => name.trim()).filter(Boolean);
    const body = {
      name: form.get("name").trim(), role: form.get("role"), models: models.length ? models : null, period: form.get("period"),
      tokens_per_minute: number("tokens_per_minute"), requests_per_minute: number("requests_per_minute"), budget: number("budget"),
      expires: number("days") ? Math.floor(Date.now() / 1000) + number("days") * DAY_S : null,
    };
    try {
      const made = await ask("admin/keys", { method: "POST", body });
      find("create-dialog").close();
      find("create-form").reset();
      find("key-text").textContent = made.key;
      find("shown-key").hidden = false;
      find("copy-key").focus();
    } catch (error) {
      find("create-error").textContent = error.message;
      find("create-error").hidden = false;
      return;
    }
    await this.#try(() => this.#readKeys());
  }

  #revoke(key) {
    find("revoke-name").textContent = key.name;
    find("revoke-form").onsubmit = async (event) => {
      event.preventDefault();
      find("revoke-dialog").close();
      await this.#try(async () => {
        await ask(`admin/keys/${encodeURIComponent(key.id)}`, { method: "DELETE" });
        await this.#readKeys();
      });
    };
    find("revoke-dialog").showModal();
  }

  #forget() {
    find("key-text").textContent = "";
    find("shown-key").hidden = true;
  }
}

function open(name) {
  find(`${name}-error`).hidden = true;
  find(`${name}-dialog`).showModal();
}

/** A table, each cell a text or an element; columns of numbers stand to the right. */
function fill(id, heads, rows, nothing) {
  const number = heads.map((_, at) => rows.length > 0 && rows.every((row) => /^[\d,–]+$/.test(row[at])));
  const kind = (at) => (number[at] ? "number" : "");
  const body = rows.length
    ? rows.map((row) => make("tr", {}, ...row.map((value, at) => make("td", { className: kind(at) }, value))))
    : [make("tr", {}, make("td", { colSpan: heads.length, className: "note" }, nothing))];
  const head = heads.map((text, at) => (text ? make("th", { scope: "col", className: kind(at), textContent: text }) : make("td")));
  find(id).replaceChildren(make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}

/** A small curve; what it shows stands beside it as a number. */
function curve(samples) {
  const [width, height] = [160, 36];
  const top = Math.max(1, ...samples);
  const points = samples.map((value, index) => {
    const x = width - ((samples.length - 1 - index) * width) / (KEPT - 1);
    return `${x.toFixed(1)},${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`;
  });
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.join(" "));
  const ground = document.createElementNS(SVG, "line");
  for (const [name, value] of Object.entries({ x1: 0, x2: width, y1: height - 1, y2: height - 1 })) ground.setAttribute(name, value);
  svg.append(ground, line);
  return svg;
}

function limits(key) {
  const told = [];
  if (key.tokens_per_minute !== null) told.push(`${count(key.tokens_per_minute)} tokens/min`);
  if (key.requests_per_minute !== null) told.push(`${count(key.requests_per_minute)} requests/min`);
  if (key.budget !== null) told.push(`${count(key.budget)} tokens ${key.period === "total" ? "in all" : `a ${key.period}`}`);
  return told.join(", ") || "none";
}

function state(key) {
  if (key.revoked !== null) return `revoked ${date(key.revoked)}`;
  if (key.expires === null) return "open";
  return `${key.expires * 1000 < Date.now() ? "ended" : "open until"} ${date(key.expires)}`;
}

const count = (number) => number.toLocaleString("en");
const date = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);
