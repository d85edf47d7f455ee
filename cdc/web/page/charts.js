// Lists the charts, and picks from the status the values that each of them shows.

import { Chart } from "./chart.js";
import { byId } from "./dom.js";
import { UNKNOWN, bytes, duration, moment, ms, rate } from "./words.js";

const LATENCY = (sink) => [{ name: "p50", key: `${sink}_p50_ms` }, { name: "p99", key: `${sink}_p99_ms` }];

const changes = new Chart({ title: "Changes", series: [{ name: "Changes a second", key: "changes_per_s" }], format: rate });
const redis = new Chart({ title: "Commit to Redis", series: LATENCY("redis"), format: ms, log: true });
const archive = new Chart({ title: "Commit to archive", series: LATENCY("archive"), format: ms, log: true });
const retained = new Chart({ title: "Retained WAL", series: [{ name: "Retained", key: "retained_bytes" }], format: bytes, base: 1024 });

export function open() {
  byId("charts").append(...[changes, redis, archive, retained].map((chart) => chart.figure));
}

export function show(status, nowMillis) {
  const history = status.history;
  const now = nowMillis / 1000;
  const view = (chart, more) => ({ now, at: history.at, values: chart.series.map((one) => history[one.key]), ...more });
  changes.update(view(changes, { current: latest(history.changes_per_s, rate) }));
  redis.update(view(redis, { current: percentiles(history, "redis"), note: status.cache.state === null ? "There is no cache." : null }));
  archive.update(view(archive, { current: percentiles(history, "archive") }));
  const ours = status.slots.find((slot) => slot.ours);
  retained.update(view(retained, {
    current: latest(history.retained_bytes, bytes),
    limit: history.limit_bytes,
    forecast: line(ours),
    note: outlook(ours, history.limit_bytes, nowMillis),
  }));
}

const latest = (values, words) => (values.length ? words(values.at(-1)) : UNKNOWN);

function percentiles(history, sink) {
  const last = history[`${sink}_p50_ms`].findLastIndex((value) => value !== null);
  if (last < 0) return UNKNOWN;
  return `p50 ${ms(history[`${sink}_p50_ms`][last])}, p99 ${ms(history[`${sink}_p99_ms`][last])}`;
}

function line(slot) {
  const forecast = slot?.forecast;
  return forecast && forecast.seconds !== null && forecast.rate_bytes_per_s > 0 ? { seconds: forecast.seconds, rate: forecast.rate_bytes_per_s } : null;
}

function outlook(slot, limit, nowMillis) {
  const bound = limit === null ? "No limit (max_slot_wal_keep_size is -1)" : `Limit ${bytes(limit)}`;
  if (!slot) return `${bound}.`;
  if (slot.lost) return `${bound}. The slot is lost.`;
  const { seconds, at, limit: what, reason } = slot.forecast;
  if (seconds === null) return what === "none" ? `${bound}; no forecast.` : `${bound}; not approaching it.`;
  const end = what === "disk" ? "disk full" : "limit reached";
  return `${bound}; at this rate ${end} in ${duration(seconds)}, ${moment(at, nowMillis)}${reason ? `: ${reason}` : ""}.`;
}
