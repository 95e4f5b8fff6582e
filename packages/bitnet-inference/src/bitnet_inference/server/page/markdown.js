// Markdown as elements. What a model writes is never HTML here: each piece of it becomes a text node.

import { copier, make } from "./dom.js";

const DEEP = 8; // quotes and lists in one another, beyond which they are plain text
const LONG = 20_000; // characters of a paragraph, beyond which it is plain text
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,8})([-*+]|\d{1,9}[.)])( +)(?=\S)/;
const ROW = /^\s*\|.*\|\s*$/;
const DIVIDER = /^\s*\|(?:\s*:?-+:?\s*\|)+\s*$/;
// In this order: code, strong, emphasis in two ways, struck out, a link, an address, an escape, a line's end.
const INLINE = new RegExp([
  /(`+)(?!`)([^]{0,2000}?[^`])\1(?!`)/, /\*\*(?=\S)([^]{0,1000}?\S)\*\*(?!\*)/, /\*(?=[^\s*])([^*]{0,1000}?[^\s*])\*(?!\*)/,
  /(?<![\p{L}\p{N}_])_(?=[^\s_])([^_]{0,1000}?[^\s_])_(?![\p{L}\p{N}_])/, /~~(?=\S)([^]{0,1000}?\S)~~/,
  /!?\[([^[\]\n]{0,500})\]\(<?([^()\s<>]{1,2000})>?(?: "[^"\n]{0,500}")?\)/,
  /(https?:\/\/[^\s<>"]{1,2000}[^\s<>".,;:!?'()[\]*_])/, /\\([!-/:-@[-`{-~])/, /( {2,})?(\n)/,
].map((one) => one.source).join("|"), "gu");

/** Show a text; what has not changed since the last time stays as it is, and keeps what is selected in it. */
export function show(place, text) {
  const wanted = blocks(text.replace(/\r\n?/g, "\n").split("\n"));
  const before = place.blocks ?? [];
  let same = 0;
  while (same < before.length && same < wanted.length && before[same] === wanted[same].source) same++;
  while (place.childNodes.length > same) place.lastChild.remove();
  place.append(...wanted.slice(same).map((block) => block.element(0)));
  place.blocks = wanted.map((block) => block.source);
}

function blocks(lines) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const start = at;
    const [end, element] = block(lines, at);
    at = Math.max(end, start + 1);
    found.push({ source: lines.slice(start, at).join("\n"), element });
  }
  return found;
}

/** The block that begins at a line: where it ends, and what makes its element at a depth. */
function block(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return fenced(lines, at, fence);
  const heading = HEADING.exec(line);
  // The page has headings of its own above these.
  if (heading) return [at + 1, () => inline(make(`h${Math.min(6, heading[1].length + 2)}`), heading[2])];
  if (RULE.test(line)) return [at + 1, () => make("hr")];
  if (QUOTE.test(line)) return quote(lines, at);
  if (ITEM.test(line)) return listing(lines, at);
  if (ROW.test(line) && DIVIDER.test(lines[at + 1] ?? "")) return table(lines, at);
  return paragraph(lines, at);
}

function nest(place, lines, depth) {
  if (depth >= DEEP) place.append(lines.join("\n"));
  else place.append(...blocks(lines).map((one) => one.element(depth + 1)));
  return place;
}

function fenced(lines, at, [, mark, language]) {
  const ends = (line) => line.trim().length >= mark.length && line.trim() === mark[0].repeat(line.trim().length);
  let end = at + 1;
  while (end < lines.length && !ends(lines[end])) end++;
  const text = lines.slice(at + 1, end).join("\n");
  const name = language.trim().split(/\s/)[0].slice(0, 40);
  return [end + 1, () => make("figure", { className: "code" },
    make("figcaption", {}, make("span", { textContent: name }), copier(() => text, { "aria-label": "Copy the code" })),
    make("pre", { tabIndex: 0, role: "group", "aria-label": name ? `Code in ${name}` : "Code" }, make("code", { textContent: text })))];
}

function quote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, (depth) => nest(make("blockquote"), inner, depth)];
}

function listing(lines, at) {
  const ordered = /\d/.test(ITEM.exec(lines[at])[2]);
  const outer = ITEM.exec(lines[at])[1].length;
  const items = [];
  let end = at;
  let width = 0; // of what stands before the text
  for (; end < lines.length; end++) {
    const mark = ITEM.exec(lines[end]);
    const indent = /^ */.exec(lines[end])[0].length;
    if (mark && indent < outer + 2 && !RULE.test(lines[end])) {
      if (/\d/.test(mark[2]) !== ordered) break;
      width = mark[0].length;
      items.push([lines[end].slice(width)]);
    } else if (!lines[end].trim()) {
      // Behind an empty line, only what is indented, or another item, still belongs to the list.
      const next = lines[end + 1] ?? "";
      if (!next.trim() || (!/^ {2}/.test(next) && !ITEM.test(next))) break;
      items.at(-1).push("");
    } else if (indent >= Math.min(width, 2) || !FENCE.test(lines[end]) && !HEADING.test(lines[end]) && !QUOTE.test(lines[end])) {
      items.at(-1).push(lines[end].slice(Math.min(indent, width)));
    } else break;
  }
  const start = ordered ? Number.parseInt(ITEM.exec(lines[at])[2], 10) : undefined;
  return [end, (depth) => make(ordered ? "ol" : "ul", { start }, ...items.map((item) => tight(make("li"), item, depth)))];
}

/** An item of one paragraph is that paragraph's text. */
function tight(place, item, depth) {
  nest(place, item, depth);
  const first = place.firstElementChild;
  if (first?.tagName === "P") first.replaceWith(...first.childNodes);
  return place;
}

function table(lines, at) {
  let end = at + 2;
  while (end < lines.length && ROW.test(lines[end])) end++;
  const cells = (line) => line.trim().slice(1, -1).split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const row = (line, tag) => make("tr", {}, ...cells(line).map((cell) => inline(make(tag, { scope: tag === "th" ? "col" : undefined }), cell)));
  return [end, () => make("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": "Table" }, make("table", {},
    make("thead", {}, row(lines[at], "th")), make("tbody", {}, ...lines.slice(at + 2, end).map((line) => row(line, "td")))))];
}

function paragraph(lines, at) {
  const begins = (line) => FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !begins(lines[end])) end++;
  const text = lines.slice(at, end).join("\n");
  return [end, () => inline(make("p"), text)];
}

function inline(place, text, depth = 0) {
  if (text.length > LONG || depth > DEEP) {
    place.append(text);
    return place;
  }
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) place.append(text.slice(at, match.index));
    at = match.index + match[0].length;
    place.append(span(match, depth));
  }
  place.append(text.slice(at));
  return place;
}

function span([whole, ticks, code, strong, star, low, struck, label, target, address, escaped], depth) {
  if (ticks) return make("code", { textContent: code.replace(/^ (.+) $/s, "$1") });
  if (strong) return inline(make("strong"), strong, depth + 1);
  if (star ?? low) return inline(make("em"), star ?? low, depth + 1);
  if (struck) return inline(make("del"), struck, depth + 1);
  if (target) return link(target, label || target, whole);
  if (address) return link(address, address, whole);
  return escaped ?? make("br");
}

/** A link to another page, if that is what it is; a picture becomes one, too: nothing is fetched unasked. */
function link(target, label, whole) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(target)) return whole;
  return make("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow", title: target, textContent: label });
}
