// Elements and texts. Whatever comes from a run becomes a text node: this page never sets HTML.
"use strict";

/**
 * Make an element.
 * attributes: `class`, `on` (listeners by event), `style` (properties), and any other attribute;
 * false and null leave an attribute away, true sets it empty.
 * children: elements and texts; null is skipped.
 */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false || value === undefined) continue;
    if (name === "on") {
      for (const [event, listener] of Object.entries(value))
        element.addEventListener(event, listener);
    } else if (name === "style") {
      for (const [property, set] of Object.entries(value)) element.style.setProperty(property, set);
    } else {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  add(element, ...children);
  return element;
}

function add(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(visible(String(child))));
  }
  return element;
}

function replaceChildren(element, ...children) {
  element.replaceChildren();
  return add(element, ...children);
}

// Characters that would be invisible, or turn the text around them.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g;

/** Return a text in which hidden characters can be seen. */
function visible(text) {
  return text.replace(HIDDEN, (character) => {
    const code = character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    return `‹U+${code}›`;
  });
}

/** A text of a run: in its own direction, whatever stands around it. */
function quoted(text, className = "") {
  return make("bdi", { class: className || null }, text);
}

/** A number as people read it: five digits, thousands apart. */
function shown(value) {
  if (value === null || value === undefined) return "–";
  if (!Number.isFinite(value)) return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size >= 1e5) return Math.round(value).toLocaleString("en-US");
  if (size < 1e-3) return value.toExponential(3).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(5)));
}

function percent(value) {
  return value === null || value === undefined ? "–" : `${Number((100 * value).toPrecision(4))} %`;
}

/** A number of things: "1 row", "2 rows". */
function counted(number, thing, things = `${thing}s`) {
  return `${shown(number)} ${number === 1 ? thing : things}`;
}

/** A duration in its two largest units. */
function duration(seconds) {
  const units = [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
    ["s", 1],
  ];
  let rest = Math.max(0, Math.round(seconds));
  const parts = [];
  for (const [name, size] of units) {
    const count = Math.floor(rest / size);
    if (count > 0 && parts.length < 2) parts.push(`${count} ${name}`);
    else if (parts.length > 0) break;
    rest -= count * size;
  }
  return parts.join(" ") || "0 s";
}

/** A time of the journal in the reader's own time zone; what is not a time stays as it is. */
function clock(time) {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return time || "–";
  const two = (number) => String(number).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** A table that scrolls by itself where it is wider than the page. */
function table(caption, columns, rows, className = "") {
  const head = make(
    "tr",
    {},
    columns.map((name) => make("th", { scope: "col" }, name)),
  );
  const body = rows.map((row) =>
    make(
      "tr",
      {},
      row.map((cell) => make("td", {}, cell instanceof Node ? cell : quoted(String(cell ?? "")))),
    ),
  );
  return make(
    "div",
    { class: `scroll ${className}`, tabindex: "0", role: "region", "aria-label": caption },
    make("table", {}, make("thead", {}, head), make("tbody", {}, body)),
  );
}

/** A card with a title, and a line under it that explains what is seen. */
function card(title, hint, ...children) {
  return make(
    "section",
    { class: "card" },
    make("h2", {}, title),
    hint ? make("p", { class: "hint" }, hint) : null,
    ...children,
  );
}
