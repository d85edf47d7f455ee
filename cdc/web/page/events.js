// Shows the last log lines, newest first. Their fields come from anywhere, so they are text and never markup.

import { byId, el, reconcile, shape } from "./dom.js";
import { clock } from "./words.js";

const SHAPES = { error: "bad", critical: "bad", warning: "warn" };
const SEVERITY = { error: 2, critical: 2, warning: 1 };
const WANTED = {
  info: () => true,
  warning: (event) => (SEVERITY[event.level] ?? 0) >= 1,
  error: (event) => (SEVERITY[event.level] ?? 0) >= 2,
  gaps: (event) => /^(gap|fork)_/.test(event.event),
};

let last = [];

export function open() {
  byId("filter").addEventListener("change", draw);
}

export function show(status) {
  last = keyed(status.events);
  draw();
}

// Two lines may be alike to the microsecond; the second of them is another event.
function keyed(events) {
  const seen = new Map();
  return events.map((event) => {
    const line = `${event.timestamp} ${event.event}`;
    seen.set(line, (seen.get(line) ?? 0) + 1);
    return { key: `${line} ${seen.get(line)}`, event };
  });
}

function draw() {
  const wanted = WANTED[byId("filter").querySelector("input:checked").value];
  const shown = last.filter(({ event }) => wanted(event)).reverse();
  byId("events-none").hidden = shown.length > 0;
  byId("events").parentElement.hidden = shown.length === 0;
  reconcile(byId("events"), shown, ({ key }) => key, ({ event }) => item(event), () => {});
}

function item({ timestamp, level, event, ...fields }) {
  const state = SHAPES[level] ?? "idle";
  const line = el("p", {}, el("strong", {}, text(event)));
  const long = [];
  for (const [name, value] of Object.entries(fields)) {
    const words = text(value);
    if (words.includes("\n")) long.push(el("details", {}, el("summary", {}, name), el("pre", {}, words)));
    else line.append(" ", el("span", { class: "field" }, el("span", { class: "muted" }, `${name}=`), words));
  }
  return el("li", {}, el("time", { datetime: text(timestamp) }, clock(Date.parse(timestamp))), el("span", { class: `level ${state}` }, shape(state), ` ${text(level)}`), el("div", {}, line, ...long));
}

const text = (value) => (typeof value === "string" ? value : JSON.stringify(value) ?? "");
