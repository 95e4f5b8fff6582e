// The server, as this page asks it: JSON, and answers that come in pieces.

const KEY = "bitnet.key"; // in this tab's storage, which ends with it
let held = ""; // where the browser keeps nothing

export function getKey() {
  try {
    return sessionStorage.getItem(KEY) ?? held;
  } catch {
    return held;
  }
}

export function setKey(text) {
  held = text;
  try {
    if (text) sessionStorage.setItem(KEY, text);
    else sessionStorage.removeItem(KEY);
  } catch {
    // It is held as long as the page is.
  }
}

/** What the server refused, or that it was not reached, in its own words. */
export class Failure extends Error {
  constructor(message, { status = 0, code = null, wait = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.wait = wait; // seconds after which it may be asked again
  }
}

async function send(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (getKey()) headers.Authorization = `Bearer ${getKey()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store", credentials: "omit", redirect: "error",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server cannot be reached. Is it running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const text = await response.text();
  const told = { status: response.status, wait: Number(response.headers.get("Retry-After")) || null };
  try {
    const { error } = JSON.parse(text);
    return new Failure(error.message, { ...told, code: error.code });
  } catch {
    return new Failure(text.slice(0, 500) || response.statusText || "no reason was given", told);
  }
}

/** An answer that is JSON. */
export async function ask(path, options) {
  const response = await send(path, options);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

/** An answer's pieces, each as it comes; the last one says that it is whole. */
export async function* stream(path, body, signal) {
  const response = await send(path, { method: "POST", body, signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const piece = JSON.parse(data);
    if (piece.error) throw new Failure(piece.error.message, { code: piece.error.code });
    yield piece;
  }
  throw new Failure("The connection ended before the answer did.");
}

/** The data of server-sent events, however the bytes were cut on their way. */
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines.map((text) => (text.endsWith("\r") ? text.slice(0, -1) : text))) {
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Failure) throw error;
    throw new Failure("The connection was lost.");
  } finally {
    await reader.cancel().catch(() => {});
  }
}
