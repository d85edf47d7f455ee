// Shows the archive, the cache and Postgres, each as a list of terms with their values.

import { byId, define, el, say, shape } from "./dom.js";
import { UNKNOWN, ago, bytes, count, duration, moment } from "./words.js";

export function show(status, nowMillis) {
  archive(status, nowMillis);
  cache(status);
  postgres(status, nowMillis);
}

function state(id, shown, words) {
  const place = byId(id);
  if (place.dataset.state === shown + words) return;
  place.dataset.state = shown + words;
  place.replaceChildren(shape(shown), ` ${words}`);
}

const concerns = (list, subject) => list.some((one) => one.subject === subject);

function archive({ archive: found, lag, reasons }, nowMillis) {
  if (found.open_gap) state("archive-state", "bad", "A gap is open: changes were lost");
  else if (concerns(reasons, "archive")) state("archive-state", "bad", "Behind");
  else state("archive-state", "ok", found.seq === null ? "Nothing written yet" : "Taking segments");
  define(byId("archive"), [
    ["Where", el("code", {}, found.url)],
    ["Last segment", found.seq === null ? UNKNOWN : count(found.seq)],
    ["Last PUT", ago(found.last_put_at, nowMillis)],
    ["Oldest not archived", lag.archive_s > 0 ? duration(lag.archive_s) : "nothing waits"],
    ["Since the start", `${count(found.segments)} segments, ${bytes(found.bytes)}, ${count(found.puts)} PUTs`],
    ["Gaps", found.open_gap ? `${count(found.gaps)}, one is open` : count(found.gaps)],
    ["Forks", count(found.forks)],
    ["Verified", proof(found.verified, nowMillis)],
    ["Restore drill", proof(found.drill, nowMillis)],
    ["Cost of PUTs", found.cost_per_month_usd === null ? UNKNOWN : `$${found.cost_per_month_usd.toFixed(2)} a month at this rate`],
  ]);
}

function proof(found, nowMillis) {
  if (found === null) return "not yet";
  const upto = found.lsn ? `, up to ${found.lsn}` : "";
  return el("span", {}, shape(found.ok ? "ok" : "bad"), ` ${found.ok ? "good" : "failed"} ${ago(found.at, nowMillis)}${upto}`);
}

const CACHE = {
  live: ["ok", "Live"],
  away: ["bad", "Away: readers get what is old, or nothing"],
  opening: ["warn", "Opening"],
  warming: ["warn", "Warming from a snapshot"],
  catching_up: ["warn", "Catching up from the archive"],
};

function cache({ cache: found, lag }) {
  state("cache-state", ...(CACHE[found.state] ?? ["idle", "There is no cache"]));
  define(byId("cache"), [
    ["Complete up to", el("code", {}, found.lsn ?? UNKNOWN)],
    ["Behind", found.lsn === null ? UNKNOWN : `${bytes(lag.cache_bytes)} of WAL`],
    ["Oldest not cached", lag.cache_s === null ? UNKNOWN : lag.cache_s > 0 ? duration(lag.cache_s) : "nothing waits"],
    ["Holds the slot", "never: no WAL is kept for it"],
  ]);
}

function postgres({ postgres: found, source, mishap, phase, reasons }, nowMillis) {
  const bad = phase.name === "waiting" || concerns(reasons, "postgres") || concerns(reasons, "slot");
  const words = phase.name.replace("_", " ");
  if (bad) state("postgres-state", "bad", phase.name === "waiting" ? "Interrupted" : "See above");
  else state("postgres-state", phase.name === "streaming" ? "ok" : "warn", words.charAt(0).toUpperCase() + words.slice(1));
  define(byId("postgres"), [
    ["Reads from", source ? `${source.database}, Postgres ${source.server_version}` : UNKNOWN],
    ["Slot, publication", source ? el("code", {}, `${source.slot}, ${source.publication}`) : UNKNOWN],
    ["System, timeline", source ? el("code", {}, `${source.system_identifier}, ${source.timeline}`) : UNKNOWN],
    ["Writes WAL", found.wal_bytes_per_s === null ? UNKNOWN : `${bytes(found.wal_bytes_per_s)}/s`],
    ["Oldest transaction", oldest(found.oldest_transaction, nowMillis)],
    ["Disk", found.disk ? `${bytes(found.disk.free_bytes)} free of ${bytes(found.disk.total_bytes)}` : "not known"],
    ["Last interruption", mishap ? `${moment(mishap.at, nowMillis)}: ${mishap.message}` : "none"],
  ]);
  say(byId("postgres-title"), "Postgres");
}

function oldest(transaction, nowMillis) {
  if (!transaction) return "none is open";
  const who = transaction.pid === null || transaction.pid === undefined ? `prepared ${transaction.gid ?? ""}` : `pid ${transaction.pid}`;
  const holds = transaction.retains_bytes ? `, holds ${bytes(transaction.retains_bytes)}` : "";
  return `${who}, ${transaction.state ?? "open"}, begun ${ago(transaction.since, nowMillis)}${holds}`;
}
