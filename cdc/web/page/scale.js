// Maps values to pixels, and finds the round numbers beside the axis. Pure: it does not use the document.

export const linear = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

export function logarithmic(low, high, from, to) {
  const straight = linear(Math.log10(low), Math.log10(high), from, to);
  return (value) => straight(Math.log10(Math.max(value, low)));
}

// At most `most` round steps up to at least `high`; for bytes they are round in powers of 1024.
export function ticks(high, most, base = 10) {
  const unit = base === 1024 ? 1024 ** Math.max(0, Math.floor(Math.log(high) / Math.log(1024))) : 1;
  const rough = high / unit / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough) * unit;
  const marks = [];
  for (let n = 0; (n - 1) * step < high; n += 1) marks.push(n * step);
  return marks;
}

// Whole decades around the values, two at least.
export function decades(low, high) {
  let first = Math.floor(Math.log10(low));
  let last = Math.ceil(Math.log10(high));
  if (last - first < 2) last = first + 2;
  if (last - first > 5) first = last - 5;
  return Array.from({ length: last - first + 1 }, (_, n) => 10 ** (first + n));
}

// Times (seconds) on whole steps of the clock.
export function timeTicks(from, to, most) {
  const step = [60, 120, 300, 600, 900, 1800, 3600].find((size) => (to - from) / size <= most) ?? 7200;
  const marks = [];
  for (let at = Math.ceil(from / step) * step; at <= to; at += step) marks.push(at);
  return marks;
}

// An SVG path through the points, broken where there is none; and the points that have no neighbour to be joined to.
export function path(points) {
  let drawn = "";
  const lonely = [];
  points.forEach((point, n) => {
    if (!point) return;
    const [x, y] = point.map((value) => Math.round(value * 10) / 10);
    drawn += `${points[n - 1] ? "L" : "M"}${x} ${y}`;
    if (!points[n - 1] && !points[n + 1]) lonely.push([x, y]);
  });
  return { drawn, lonely };
}
