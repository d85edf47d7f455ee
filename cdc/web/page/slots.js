// Shows every replication slot of the server, because any of them can fill its disk. Those of others are marked.

import { byId, el, reconcile, say, set, shape } from "./dom.js";
import { UNKNOWN, bytes, duration, moment } from "./words.js";

const HEADS = ["Slot", "Read by", "State", "Retains", "Room left", "Forecast"];

export function show(status, nowMillis) {
  const table = byId("slots");
  table.hidden = status.slots.length === 0;
  byId("slots-none").hidden = status.slots.length > 0;
  const slots = [...status.slots].sort((a, b) => Number(b.ours) - Number(a.ours) || a.slot.localeCompare(b.slot));
  reconcile(table.tBodies[0], slots, (slot) => slot.slot, row, (node, slot) => write(node, slot, nowMillis));
}

function row() {
  const name = el("th", { role: "rowheader", scope: "row" }, el("span", { class: "name" }), el("span", { class: "badge" }), el("small", { class: "muted" }));
  const cells = HEADS.slice(1).map((head) => el("td", { role: "cell", "data-head": head }, el("span"), el("small", { class: "muted" })));
  set(cells[2], { class: "number" });
  set(cells[3], { class: "number" });
  return el("tr", { role: "row" }, name, ...cells);
}

function write(node, slot, nowMillis) {
  const [name, badge, kind] = node.cells[0].children;
  say(name, slot.slot);
  say(badge, slot.ours ? "ours" : "not ours");
  set(badge, { class: slot.ours ? "badge ours" : "badge" });
  say(kind, [slot.kind, slot.plugin, slot.database].filter(Boolean).join(", "));
  const [reader, state, retains, room, forecast] = [...node.cells].slice(1);
  both(reader, ...readBy(slot));
  condition(state, slot);
  both(retains, slot.lost ? "lost" : bytes(slot.retained_bytes), slot.lag_bytes === null ? "" : `${bytes(slot.lag_bytes)} not acknowledged`);
  both(room, slot.safe_wal_bytes === null ? (slot.lost ? "none" : "no limit") : bytes(Math.max(0, slot.safe_wal_bytes)), "");
  both(forecast, ...foreseen(slot, nowMillis));
}

function both(cell, text, small) {
  say(cell.firstChild, text);
  say(cell.lastChild, small);
}

function readBy({ reader, active_pid: pid, inactive_s: idle }) {
  if (reader) return [reader.application_name || "unnamed", `pid ${reader.pid}, ${reader.sender_state ?? "not streaming"}`];
  if (pid !== null) return [`pid ${pid}`, ""];
  return ["nobody", idle === null ? "" : `for ${duration(idle)}`];
}

function condition(cell, slot) {
  const unread = slot.active_pid === null && !slot.synced;
  const state = slot.lost ? "bad" : slot.wal_status === "unreserved" ? "bad" : unread || slot.wal_status === "extended" ? "warn" : "ok";
  const word = slot.lost ? "lost" : (slot.wal_status ?? (slot.restart_lsn === null ? "reserves nothing" : UNKNOWN));
  if (cell.dataset.state !== state + word) cell.firstChild.replaceChildren(shape(state), ` ${word}`);
  cell.dataset.state = state + word;
  say(cell.lastChild, [slot.invalidation_reason, slot.conflicting ? "conflicting" : null, unread && !slot.lost ? "nobody drains it" : null].filter(Boolean).join(", "));
}

function foreseen({ forecast, lost }, nowMillis) {
  if (lost) return ["its WAL is gone", ""];
  const { seconds, at, limit, reason } = forecast;
  if (seconds === null) return [limit === "none" ? "none: no limit, disk unknown" : "not approaching its limit", reason ?? ""];
  const what = limit === "disk" ? "disk full" : "limit";
  return [`${what} in ${duration(seconds)}`, [moment(at, nowMillis), reason ? `because ${reason}` : UNKNOWN].filter((part) => part !== UNKNOWN).join(", ")];
}
