// The page: which conversation, which model, who asks, and what of it is to be seen.

import { Admin } from "./admin.js";
import * as api from "./api.js";
import { Chat } from "./chat.js";
import { button, download, find, make, toast } from "./dom.js";
import { Settings } from "./settings.js";
import * as store from "./store.js";

const NARROW = matchMedia("(max-width: 56rem)"); // as in style.css
const THEMES = { "": "as the system", light: "light", dark: "dark" };

class Page {
  #models = [];
  #me = { role: null, keys: false };
  #chat = new Chat(() => this.#changed(), (error) => this.#askKey(error.message));
  #settings = new Settings(() => this.#save());
  #admin = new Admin();

  async start() {
    this.#listen();
    this.#theme(document.documentElement.dataset.theme ?? "");
    this.#panel("sidebar", !NARROW.matches);
    NARROW.addEventListener("change", () => { this.#panel("sidebar", !NARROW.matches); this.#panel("settings", false); });
    const kept = store.list();
    this.#open(kept.find((one) => `#${one.id}` === location.hash) ?? store.begin(kept[0]));
    if (!NARROW.matches) find("input").focus();
    await this.#connect();
  }

  #listen() {
    const on = (id, does) => find(id).addEventListener("click", does);
    on("new", () => this.#new());
    on("delete-all", () => this.#deleteAll());
    on("open-sidebar", () => this.#panel("sidebar", find("sidebar").hidden, true));
    on("open-settings", () => this.#panel("settings", find("settings").hidden, true));
    on("open-admin", () => this.#view(find("admin").hidden));
    on("close-admin", () => this.#view(false));
    on("open-key", () => this.#askKey(""));
    on("cancel-key", () => find("key-dialog").close());
    on("theme", () => this.#turn());
    for (const one of document.querySelectorAll("[data-closes]")) one.addEventListener("click", () => this.#panel(one.dataset.closes, false, true));
    for (const one of document.querySelectorAll("[data-export]")) one.addEventListener("click", () => this.#export(one.dataset.export));
    find("model").addEventListener("change", () => { this.#chat.conversation.model = find("model").value; this.#save(); this.#context(); });
    find("key-form").addEventListener("submit", (event) => { event.preventDefault(); this.#useKey(); });
    document.addEventListener("keydown", (event) => this.#pressed(event));
    window.addEventListener("storage", (event) => { if (event.key?.startsWith("bitnet.chat.")) this.#list(); });
  }

  #pressed(event) {
    if (event.key !== "Escape" || document.querySelector("dialog[open], :popover-open")) return;
    if (this.#chat.leave()) return;
    if (!find("settings").hidden) this.#panel("settings", false, true);
    else if (NARROW.matches && !find("sidebar").hidden) this.#panel("sidebar", false, true);
  }

  /** Find out who we are and which models there are; where a key is missing, ask for one. */
  async #connect() {
    try {
      this.#me = await api.ask("page/me");
      find("open-key").hidden = !this.#me.locked;
      find("open-admin").hidden = this.#me.role !== "admin";
      if (this.#me.role === null) {
        this.#askKey(api.getKey() ? "This key opens nothing here." : "");
        return false;
      }
      this.#models = (await api.ask("v1/models")).data;
      find("welcome-model").textContent = "";
    } catch (error) {
      find("welcome-model").replaceChildren(make("span", { className: "error", role: "alert", textContent: error.message }), button("Try again", () => this.#connect()));
      return false;
    }
    this.#offer();
    return true;
  }

  #offer() {
    const { conversation } = this.#chat;
    const option = ({ id }) => make("option", { value: id, textContent: id });
    const groups = this.#models.filter((model) => !model.parent).map((model) => {
      const adapters = this.#models.filter((one) => one.parent === model.id);
      return adapters.length ? make("optgroup", { label: model.id }, option(model), ...adapters.map(option)) : option(model);
    });
    find("model").replaceChildren(...groups);
    if (!this.#models.some((model) => model.id === conversation.model)) conversation.model = this.#models[0]?.id ?? null;
    find("model").value = conversation.model ?? "";
    this.#context();
  }

  /** How much of what the model can read this conversation takes. */
  #context() {
    const { model, messages } = this.#chat.conversation;
    const found = this.#models.find((one) => one.id === model);
    const used = messages.findLast((message) => message.usage)?.usage;
    const size = found?.max_model_len;
    this.#settings.advise(found?.sampling ?? {});
    const taken = used ? used.prompt + used.completion : 0;
    find("context").textContent = size ? `${taken.toLocaleString("en")} of ${size.toLocaleString("en")} tokens` : "";
    find("context").classList.toggle("full", Boolean(size) && taken > 0.9 * size);
    find("welcome-model").textContent = found ? `${found.id} is ${found.loaded ? "ready" : "loaded when it is first asked"}.` : "This server has no model for you.";
  }

  #askKey(error) {
    find("key").value = api.getKey();
    find("key-error").textContent = error;
    find("key-error").hidden = !error;
    if (!find("key-dialog").open) find("key-dialog").showModal();
    find("key").select();
  }

  async #useKey() {
    api.setKey(find("key").value.trim());
    find("key-error").hidden = true;
    this.#view(false);
    if (await this.#connect()) {
      find("key-dialog").close();
      find("input").focus();
    }
  }

  #open(conversation) {
    this.#chat.show(conversation);
    this.#settings.show(conversation);
    history.replaceState(null, "", conversation.messages.length ? `#${conversation.id}` : location.pathname);
    this.#view(false);
    if (this.#models.length) this.#offer();
    this.#list();
  }

  #new() {
    this.#open(store.begin(this.#chat.conversation));
    if (NARROW.matches) this.#panel("sidebar", false);
    find("input").focus();
  }

  #changed() {
    const { id, messages } = this.#chat.conversation;
    if (messages.length) history.replaceState(null, "", `#${id}`);
    this.#context();
    this.#list();
  }

  #save() {
    if (this.#chat.conversation.messages.length && !this.#chat.busy) store.save(this.#chat.conversation);
  }

  #list() {
    const { id } = this.#chat.conversation;
    find("conversations").replaceChildren(...store.list().map((one) => make("li", {},
      button(one.title || "Untitled", () => { this.#open(one); if (NARROW.matches) this.#panel("sidebar", false, true); }, { className: "title", title: one.title, "aria-current": one.id === id ? "true" : undefined }),
      button("×", () => this.#delete([one]), { className: "icon delete", "aria-label": `Delete ${one.title || "this conversation"}` }))));
  }

  #deleteAll() {
    const all = store.list();
    if (all.length) this.#delete(all);
  }

  #delete(gone) {
    for (const one of gone) store.remove(one);
    if (gone.some((one) => one.id === this.#chat.conversation.id)) this.#open(store.begin(this.#chat.conversation));
    this.#list();
    toast(gone.length === 1 ? "The conversation is deleted." : `${gone.length} conversations are deleted.`, () => {
      for (const one of gone) store.save(one);
      this.#list();
    });
  }

  #export(kind) {
    const { conversation } = this.#chat;
    const name = (conversation.title || "conversation").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40).replace(/^-|-$/g, "") || "conversation";
    if (kind === "json") download(`${name}.json`, "application/json", store.toJSON(conversation));
    else download(`${name}.md`, "text/markdown", store.toMarkdown(conversation));
    find("export").hidePopover();
  }

  #view(admin) {
    if (admin === !find("admin").hidden) return;
    find("chat").hidden = admin;
    find("open-admin").setAttribute("aria-pressed", String(admin));
    if (admin) this.#admin.show(this.#me.keys);
    else this.#admin.hide();
    this.#panel("settings", false);
    for (const id of ["model", "open-settings", "open-export"]) find(id).hidden = admin;
  }

  /** Show or hide a panel; `moves` takes the focus along. */
  #panel(id, open, moves = false) {
    const panel = find(id);
    if (open && NARROW.matches) this.#panel(id === "sidebar" ? "settings" : "sidebar", false);
    panel.hidden = !open;
    const opener = find(`open-${id}`);
    opener.setAttribute("aria-expanded", String(open));
    if (moves) (open ? panel.querySelector("button, textarea") : opener).focus();
  }

  #turn() {
    const names = Object.keys(THEMES);
    this.#theme(names[(names.indexOf(document.documentElement.dataset.theme ?? "") + 1) % names.length]);
  }

  #theme(name) {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    find("theme").setAttribute("aria-label", `Colours: ${THEMES[name]}`);
    find("theme").title = `Colours: ${THEMES[name]}`;
    try {
      if (name) localStorage.setItem("bitnet.theme", name);
      else localStorage.removeItem("bitnet.theme");
    } catch {
      // It holds for this page.
    }
  }
}

new Page().start();
