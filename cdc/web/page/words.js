// Prints numbers for people: sizes, durations, times, rates. Unknown is a dash.

export const UNKNOWN = "–";

const known = (value) => value !== null && value !== undefined && Number.isFinite(value);

function scaled(value, units, base) {
  let step = 0;
  while (value >= base && step < units.length - 1) {
    value /= base;
    step += 1;
  }
  const digits = step === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${Number(value.toFixed(digits))} ${units[step]}`;
}

// Powers of 1024 under Postgres's own names, so that a figure here is what one writes in postgresql.conf.
export const bytes = (value) => (known(value) ? scaled(value, ["B", "kB", "MB", "GB", "TB", "PB"], 1024) : UNKNOWN);

export function count(value) {
  return known(value) ? Math.round(value).toLocaleString("en") : UNKNOWN;
}

export function rate(value) {
  if (!known(value)) return UNKNOWN;
  return `${value >= 100 ? count(value) : Number(value.toFixed(1))}/s`;
}

export function ms(value) {
  if (!known(value)) return UNKNOWN;
  if (value >= 1000) return `${Number((value / 1000).toPrecision(3))} s`;
  return `${Number(value.toPrecision(2))} ms`;
}

export function duration(seconds) {
  if (!known(seconds)) return UNKNOWN;
  const units = [[31557600, "y"], [86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const whole = Math.round(seconds);
  const first = units.findIndex(([size]) => whole >= size);
  if (first < 0) return seconds > 0.05 ? `${seconds.toFixed(1)} s` : "0 s";
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  const [size, name] = units[first];
  const head = `${Math.floor(whole / size)} ${name}`;
  if (first === units.length - 1) return head;
  const [nextSize, nextName] = units[first + 1];
  const rest = Math.floor((whole % size) / nextSize);
  return rest ? `${head} ${rest} ${nextName}` : head;
}

// In UTC, as the service's own messages and log lines are: two clocks on one page would be one too many.
const iso = (millis) => (known(millis) && Math.abs(millis) < 8e15 ? new Date(millis).toISOString() : null);

export const clock = (millis) => iso(millis)?.slice(11, 19) ?? UNKNOWN;
export const minute = (millis) => clock(millis).slice(0, 5);

// A time within twelve hours needs no date; any other does.
export function moment(text, nowMillis) {
  const at = text ? Date.parse(text) : NaN;
  if (Math.abs(nowMillis - at) < 12 * 3600e3) return clock(at);
  return iso(at)?.slice(0, 16).replace("T", " ") ?? UNKNOWN;
}

export const ago = (text, nowMillis) =>
  text ? `${duration(Math.max(0, (nowMillis - Date.parse(text)) / 1000))} ago` : UNKNOWN;

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);
