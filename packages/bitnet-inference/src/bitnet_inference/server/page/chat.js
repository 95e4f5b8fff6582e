// One conversation: what was said, what is being said, and the field to say more in.

import * as api from "./api.js";
import { announce, button, copier, find, make, speed, toast } from "./dom.js";
import { show } from "./markdown.js";
import * as store from "./store.js";

const NEAR = 80; // pixels from the end, within which the text is followed
const TOLD = 2000; // characters of an answer that a screen reader is told at once

export class Chat {
  conversation = null;
  #saved;
  #refused;
  #running = null; // what ends the answer that is being written
  #editing = false;
  #draft = ""; // what was in the field before a message was changed
  #follow = true;

  /** `saved` is called when a conversation has changed, `refused` when the server wants another key. */
  constructor(saved, refused) {
    this.#saved = saved;
    this.#refused = refused;
    const input = find("input");
    input.addEventListener("input", () => this.#fit());
    input.addEventListener("keydown", (event) => {
      // While a word is being composed, Enter is the composer's.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#submit();
    });
    find("composer").addEventListener("submit", (event) => { event.preventDefault(); this.#submit(); });
    find("stop").addEventListener("click", () => { this.stop(); input.focus(); });
    find("keep").addEventListener("click", () => this.#edit(false));
    find("latest").addEventListener("click", () => { this.#follow = true; this.#scroll(); });
    find("scroll").addEventListener("scroll", () => this.#scrolled(), { passive: true });
    window.addEventListener("pagehide", () => this.busy && store.save(this.conversation));
    new ResizeObserver(() => this.#scroll()).observe(find("messages"));
  }

  get busy() {
    return this.#running !== null;
  }

  show(conversation) {
    this.stop();
    this.#edit(false);
    this.conversation = conversation;
    this.#follow = true;
    this.#fit();
    this.draw();
  }

  draw() {
    const { messages } = this.conversation;
    find("messages").replaceChildren(...messages.map((message, index) => this.#article(message, index)));
    find("welcome").hidden = messages.length > 0;
    this.#scroll();
  }

  /** Whether there was something to stop. */
  stop() {
    this.#running?.abort();
    return this.busy;
  }

  /** What Escape does; whether it did something. */
  leave() {
    if (this.stop()) return true;
    const was = this.#editing;
    this.#edit(false);
    return was;
  }

  retry() {
    const { messages } = this.conversation;
    if (this.busy || !messages.length) return;
    if (messages.at(-1).role === "assistant") messages.pop();
    this.#answer();
  }

  #submit() {
    const input = find("input");
    const text = input.value.trim();
    if (!text || this.busy) return;
    if (!this.conversation.model) {
      toast("There is no model to ask.");
      return;
    }
    const { messages } = this.conversation;
    if (this.#editing) messages.splice(messages.findLastIndex((message) => message.role === "user"));
    this.#editing = false;
    find("editing").hidden = true;
    messages.push({ role: "user", content: text });
    input.value = "";
    this.#fit();
    this.#answer();
  }

  async #answer() {
    const conversation = this.conversation;
    const answer = { role: "assistant", content: "", model: conversation.model };
    const body = request(conversation);
    const running = new AbortController();
    this.#running = running;
    this.#keep(conversation);
    conversation.messages.push(answer);
    this.#follow = true;
    this.draw();
    const article = find("messages").lastElementChild;
    this.#busy(article, true);
    try {
      await this.#read(answer, article, api.stream("v1/chat/completions", body, running.signal));
    } catch (error) {
      if (error.name === "AbortError") answer.stopped = true;
      else answer.error = { message: error.message, status: error.status || null, wait: error.wait ?? null };
      if (error.status === 401) this.#refused(error);
    }
    this.#running = null;
    this.#busy(article, false);
    // It may have been deleted meanwhile.
    if (conversation === this.conversation || store.has(conversation)) this.#keep(conversation);
    if (conversation === this.conversation) this.draw();
    announce(answer.error ? "" : answer.content.slice(0, TOLD));
  }

  async #read(answer, article, pieces) {
    const begun = performance.now();
    let [first, last] = [0, 0];
    const place = article.querySelector(".text");
    let drawn = false;
    const draw = () => {
      drawn = false;
      if (this.#running) show(place, answer.content);
    };
    for await (const piece of pieces) {
      const choice = piece.choices[0];
      if (choice?.delta.content) {
        last = performance.now();
        first ||= last;
        answer.content += choice.delta.content;
        // No more often than the screen shows it.
        if (!drawn) drawn = Boolean(requestAnimationFrame(draw));
      }
      if (choice?.finish_reason) answer.ended = choice.finish_reason;
      if (piece.usage) answer.usage = measure(piece.usage, begun, first, last);
    }
  }

  #busy(article, busy) {
    article.classList.toggle("writing", busy);
    article.setAttribute("aria-busy", String(busy));
    find("stop").hidden = !busy;
    find("send").hidden = busy;
    if (busy) announce("The model answers.");
  }

  #keep(conversation) {
    conversation.changed = Date.now();
    if (!store.save(conversation)) toast("This browser keeps no more. Export what you need, then delete some conversations.");
    this.#saved();
  }

  #article(message, index) {
    const user = message.role === "user";
    const name = user ? "You" : (message.model ?? "Model");
    const text = make("div", { className: "text" });
    if (user) text.textContent = message.content;
    else show(text, message.content);
    const article = make("article", { className: `message ${message.role}`, "aria-label": name });
    if (!user) article.append(make("p", { className: "name", textContent: name, "aria-hidden": "true" }));
    article.append(text);
    if (message.error) article.append(make("p", { className: "error", role: "alert", textContent: worded(message.error) }));
    article.append(make("footer", {}, this.#actions(message, index), make("span", { className: "figures", textContent: figures(message) })));
    return article;
  }

  #actions(message, index) {
    const { messages } = this.conversation;
    const made = make("span", { className: "actions" });
    if (message.content) made.append(copier(() => message.content, { "aria-label": "Copy this message" }));
    if (message.role === "user" && index === messages.findLastIndex((one) => one.role === "user")) {
      made.append(button("Edit", () => this.#edit(true), { "aria-label": "Edit this message" }));
    }
    if (index === messages.length - 1) made.append(button("Retry", () => this.retry(), { "aria-label": "Answer again" }));
    return made;
  }

  #edit(on) {
    if (on === this.#editing || (on && this.busy)) return;
    const input = find("input");
    if (on) this.#draft = input.value;
    input.value = on ? this.conversation.messages.findLast((message) => message.role === "user").content : this.#draft;
    this.#editing = on;
    find("editing").hidden = !on;
    this.#fit();
    input.focus();
  }

  #fit() {
    const input = find("input");
    input.style.height = "auto";
    input.style.height = `${input.scrollHeight}px`;
    find("send").disabled = !input.value.trim();
  }

  #scroll() {
    const place = find("scroll");
    if (this.#follow) place.scrollTop = place.scrollHeight;
    this.#scrolled();
  }

  #scrolled() {
    const place = find("scroll");
    this.#follow = place.scrollHeight - place.scrollTop - place.clientHeight < NEAR;
    find("latest").hidden = this.#follow;
  }
}

/** A conversation as the server is asked to go on with it. */
function request({ model, system, sampling, messages }) {
  const said = messages.filter((message) => message.content).map(({ role, content }) => ({ role, content }));
  const before = system.trim() ? [{ role: "system", content: system }] : [];
  return { model, messages: [...before, ...said], ...sampling, stream: true, stream_options: { include_usage: true } };
}

function measure(usage, begun, first, last) {
  const seconds = (last - first) / 1000;
  return {
    prompt: usage.prompt_tokens,
    cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    completion: usage.completion_tokens,
    first: first ? (first - begun) / 1000 : null,
    // The first token's time is the prompt's.
    rate: seconds > 0 && usage.completion_tokens > 1 ? (usage.completion_tokens - 1) / seconds : null,
    joules: usage.energy_j ?? null,
  };
}

function figures({ usage, ended, stopped }) {
  const told = [];
  if (usage) {
    told.push(`${usage.completion.toLocaleString("en")} tokens`);
    if (usage.rate) told.push(`${speed(usage.rate)} tokens/s`);
    if (usage.first !== null) told.push(`first after ${usage.first.toFixed(2)} s`);
    told.push(`prompt ${usage.prompt.toLocaleString("en")}${usage.cached ? `, ${usage.cached.toLocaleString("en")} cached` : ""}`);
    if (usage.joules) told.push(`${usage.joules.toFixed(1)} J`);
  }
  if (stopped) told.push("stopped");
  if (ended === "length") told.push("ended at the limit");
  // A line ends between two of them, and not within one.
  return told.map((each) => each.replaceAll(" ", "\u00a0")).join(" · ");
}

function worded({ message, status, wait }) {
  return `${status ? `${status}: ` : ""}${message}${wait ? ` (again in ${wait} s)` : ""}`;
}
