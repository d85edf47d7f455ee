// Draws the picture: from the application to both sinks, and the acknowledgement back. It goes from left to right where
// there is room, and from top to bottom on a phone. A box tells its state by shape, word and outline. A line that moves
// is a line with traffic.

import { byId, el, reconcile, say, set, shape, svg } from "./dom.js";
import { UNKNOWN, ago, bytes, duration, rate } from "./words.js";

// Each box: x, y, width, height. Each line: a path. The word of the acknowledgement: x, y, anchor.
const WIDE = {
  size: [1120, 264],
  boxes: {
    app: [0, 66, 118, 84], postgres: [158, 58, 164, 100], receive: [366, 66, 150, 84], assemble: [552, 66, 150, 84],
    cacheQueue: [752, 2, 156, 84], cache: [944, 2, 176, 84], archiveQueue: [752, 130, 156, 84], archive: [944, 130, 176, 84],
  },
  lines: {
    write: "M118 108H153", wal: "M322 108H361", received: "M516 108H547",
    toCache: "M702 98C730 94 722 44 747 44", cache: "M908 44H939",
    toArchive: "M702 118C730 122 722 172 747 172", archive: "M908 172H939", ack: "M1032 214V250H240V163",
  },
  word: [636, 242, "middle"],
};
const NARROW = {
  size: [328, 640],
  boxes: {
    app: [64, 0, 230, 70], postgres: [40, 96, 278, 82], receive: [40, 204, 278, 70], assemble: [40, 300, 278, 70],
    archiveQueue: [26, 406, 144, 76], cacheQueue: [182, 406, 144, 76], archive: [26, 512, 144, 82], cache: [182, 512, 144, 82],
  },
  lines: {
    write: "M179 70V91", wal: "M179 178V199", received: "M179 274V295",
    toArchive: "M140 370C140 388 98 382 98 401", archive: "M98 482V507",
    toCache: "M218 370C218 388 254 382 254 401", cache: "M254 482V507", ack: "M98 594V614H10V137H35",
  },
  word: [108, 619, "start"],
};
const TITLES = {
  app: "Application", postgres: "Postgres", receive: "Receive", assemble: "Assemble",
  cacheQueue: "Cache queue", cache: "Redis", archiveQueue: "Archive queue", archive: "Archive",
};
const ROOMY = matchMedia("(min-width: 64rem)");

let drawn = null;
let last = null;

export function open() {
  build();
  ROOMY.addEventListener("change", () => {
    build();
    if (last) show(...last);
  });
}

export function show(status, nowMillis) {
  last = [status, nowMillis];
  const facts = read(status, nowMillis);
  for (const [name, fact] of Object.entries(facts.boxes)) drawBox(drawn.boxes[name], fact);
  for (const [name, state] of Object.entries(facts.lines)) set(drawn.lines[name], { class: `pipe ${state}` });
  say(drawn.word, facts.acknowledged);
  set(drawn.picture, { "aria-label": facts.sentence });
  tabulate(status);
}

// What to say

function read(status, nowMillis) {
  const { positions, lag, phase } = status;
  const streaming = phase.name === "streaming";
  const cache = cacheFact(status);
  const archive = archiveFact(status, nowMillis);
  const flowing = streaming && status.history.changes_per_s.at(-1) > 0;
  const flow = (state) => (!streaming ? "stopped" : state === "bad" ? "stopped" : flowing ? "flowing" : "still");
  const perSecond = rate(status.history.changes_per_s.at(-1));
  const boxes = {
    app: { value: perSecond, note: "changes" },
    postgres: { ...mostSevere(status, "postgres", "slot"), value: positions.server, note: `WAL ${bytes(status.postgres.wal_bytes_per_s)}/s` },
    receive: { state: streaming ? "ok" : phase.name === "waiting" ? "bad" : "warn", value: positions.received, note: streaming ? `${bytes(lag.received_bytes)} behind` : phase.name.replace("_", " ") },
    assemble: { value: "transactions", note: "whole, in order" },
    cacheQueue: queue(lag.cache_bytes, lag.cache_s, status.cache.state === null),
    cache,
    archiveQueue: queue(lag.archive_bytes, lag.archive_s, false),
    archive,
  };
  const lines = { write: flowing ? "flowing" : "still", wal: flow(), received: flow(), toCache: flow(cache.state === "ok" ? "ok" : "bad"), cache: flow(cache.state === "ok" ? "ok" : "bad"), toArchive: flow(archive.state), archive: flow(archive.state), ack: flow(archive.state) };
  return {
    boxes,
    lines,
    acknowledged: ROOMY.matches
      ? `acknowledged ${positions.acknowledged ?? UNKNOWN}: Postgres may forget the WAL before it`
      : `acknowledged ${positions.acknowledged ?? UNKNOWN}`,
    sentence: `Postgres has written WAL up to ${positions.server ?? "an unknown position"}; we are ${boxes.receive.note}. Received up to ${positions.received ?? "nothing"}. `
      + `Archived up to ${positions.archived ?? "nothing"}, ${archive.note}. Redis: ${cache.note}, up to ${positions.cached ?? "nothing"}. Acknowledged up to ${positions.acknowledged ?? "nothing"}.`,
  };
}

function archiveFact(status, nowMillis) {
  const title = status.archive.url.startsWith("file:") ? "Archive" : "R2, S3";
  const last = status.archive.last_put_at ? `last PUT ${ago(status.archive.last_put_at, nowMillis)}` : "nothing written yet";
  return { ...mostSevere(status, "archive"), title, value: status.positions.archived, note: last };
}

function cacheFact(status) {
  const { state } = status.cache;
  if (state === null) return { state: "idle", value: UNKNOWN, note: "no cache" };
  return { state: state === "live" ? "ok" : state === "away" ? "bad" : "warn", value: status.positions.cached, note: state.replace("_", " ") };
}

function queue(waiting, age, absent) {
  if (absent) return { value: UNKNOWN, note: "" };
  return { value: bytes(waiting), note: age > 0 ? `oldest ${duration(age)}` : "nothing waits" };
}

function mostSevere(status, ...subjects) {
  const concerns = (list) => list.some((one) => subjects.includes(one.subject));
  return { state: concerns(status.reasons) ? "bad" : concerns(status.warnings) ? "warn" : "ok" };
}

// How to draw it

function build() {
  const plan = ROOMY.matches ? WIDE : NARROW;
  const [width, height] = plan.size;
  const tip = (id, name) => svg("marker", { id, class: name, viewBox: "0 0 8 8", refX: "7", refY: "4", markerWidth: "8", markerHeight: "8", markerUnits: "userSpaceOnUse", orient: "auto" }, svg("path", { d: "M0 0L8 4L0 8z" }));
  const lines = Object.fromEntries(Object.entries(plan.lines).map(([name, d]) => [name, svg("path", { d, class: "pipe", "marker-end": "url(#tip)" })]));
  const boxes = Object.fromEntries(Object.entries(plan.boxes).map(([name, place]) => [name, box(TITLES[name], place)]));
  const [x, y, anchor] = plan.word;
  const word = svg("text", { class: "word", x, y, "text-anchor": anchor });
  const picture = svg("svg", { role: "img", viewBox: `-2 -2 ${width + 4} ${height + 4}`, class: ROOMY.matches ? "roomy" : "narrow" },
    svg("defs", {}, tip("tip", "tip-shape")), ...Object.values(lines), ...Object.values(boxes).map((one) => one.group), word);
  byId("pipeline").replaceChildren(picture);
  drawn = { picture, lines, boxes, word };
}

function box(title, [x, y, width, height]) {
  const middle = x + 12;
  const third = height / 3.35;
  const texts = ["title", "value", "note"].map((name, n) => svg("text", { class: `box-${name}`, x: middle, y: y + third * (n + 0.9) }));
  say(texts[0], title);
  const corner = svg("g", { transform: `translate(${x + width - 25} ${y + 9})` });
  return { group: svg("g", { class: "box" }, svg("rect", { x, y, width, height, rx: 10 }), ...texts, corner), texts, corner };
}

function drawBox(drawing, { state, title, value, note }) {
  set(drawing.group, { class: `box ${state ?? "plain"}` });
  if (title) say(drawing.texts[0], title);
  say(drawing.texts[1], value ?? UNKNOWN);
  say(drawing.texts[2], note);
  if (drawing.state === state) return;
  drawing.state = state;
  const icon = state ? shape(state) : null;
  if (icon) set(icon, { width: 15, height: 15 });
  drawing.corner.replaceChildren(...(icon ? [icon] : []));
}

function tabulate({ positions, lag }) {
  const rows = [
    ["Postgres has written", positions.server, UNKNOWN],
    ["Received", positions.received, `${bytes(lag.received_bytes)} behind Postgres`],
    ["Archived", positions.archived, `${bytes(lag.archive_bytes)}, ${duration(lag.archive_s)} behind what was received`],
    ["Acknowledged", positions.acknowledged, `${bytes(lag.acknowledged_bytes)} behind what was received`],
    ["In Redis", positions.cached, `${bytes(lag.cache_bytes)}, ${duration(lag.cache_s)} behind what was received`],
  ];
  reconcile(
    byId("positions").tBodies[0],
    rows,
    ([name]) => name,
    ([name]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "code" }), el("td")),
    (row, [, lsn, behind]) => {
      say(row.cells[1], lsn ?? UNKNOWN);
      say(row.cells[2], behind);
    },
  );
}
