// Conversations, in this browser's storage: one entry each, so that two tabs do not undo each other's work.

const PREFIX = "bitnet.chat.";
const TITLE = 60; // characters

/** A conversation with nothing said, and the settings of another where there is one. */
export function begin(like) {
  const now = Date.now();
  return {
    id: `${now.toString(36)}-${Math.random().toString(36).slice(2, 8)}`,
    title: "", created: now, changed: now,
    model: like?.model ?? null, system: like?.system ?? "", sampling: { ...like?.sampling }, messages: [],
  };
}

/** All that are kept, the one changed last first; what is not one of ours is left alone. */
export function list() {
  const found = [];
  try {
    for (let index = 0; index < localStorage.length; index++) {
      const name = localStorage.key(index);
      const one = name.startsWith(PREFIX) ? read(localStorage.getItem(name)) : null;
      if (one) found.push(one);
    }
  } catch {
    return [];
  }
  return found.sort((one, other) => other.changed - one.changed);
}

function read(text) {
  try {
    const one = JSON.parse(text);
    const right = typeof one.id === "string" && Array.isArray(one.messages) &&
      one.messages.every((message) => typeof message.content === "string" && ["user", "assistant"].includes(message.role));
    return right ? { ...begin(), ...one, sampling: { ...one.sampling } } : null;
  } catch {
    return null;
  }
}

/** Keep a conversation; false where the browser has no room, or keeps nothing. */
export function save(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  conversation.title = first ? first.content.trim().replace(/\s+/g, " ").slice(0, TITLE) : "";
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

export function has({ id }) {
  try {
    return localStorage.getItem(PREFIX + id) !== null;
  } catch {
    return false;
  }
}

export function remove({ id }) {
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // It was never kept.
  }
}

/** A conversation as a text that people read. */
export function toMarkdown(conversation) {
  const parts = [`# ${conversation.title || "A conversation"}`, `Model: ${conversation.model ?? "none"}`];
  if (conversation.system) parts.push(`## System\n\n${conversation.system}`);
  for (const message of conversation.messages) {
    parts.push(`## ${message.role === "user" ? "You" : (message.model ?? "Model")}\n\n${message.content}`);
  }
  return `${parts.join("\n\n")}\n`;
}

/** The same for programs, with all that is known of it. */
export function toJSON(conversation) {
  return `${JSON.stringify(conversation, null, 2)}\n`;
}
