// Draws one chart: a line or two over the last half hour, with a time axis, units, and a limit and a forecast if there
// are some. Pointer and arrow keys read single values. A table says the same without a picture.

import { el, reconcile, say, set, svg } from "./dom.js";
import { decades, linear, logarithmic, path, ticks, timeTicks } from "./scale.js";
import { UNKNOWN, clock, minute } from "./words.js";

const HEIGHT = 190;
const EDGE = { left: 62, right: 34, top: 14, bottom: 24 };
const SPAN_S = 1800;
const YOUNG_S = 300;

let made = 0;

export class Chart {
  // series: [{name, key}]; format: number -> words; log: a scale of decades; base: 1024 for bytes
  constructor({ title, series, format, log = false, base = 10 }) {
    Object.assign(this, { title, series, format, log, base, chosen: null, width: 0, view: null });
    made += 1;
    const name = `chart-${made}`;
    this.now = el("p", { class: "now" });
    this.toggle = el("button", { type: "button", class: "quiet", "aria-expanded": "false", "aria-controls": `${name}-table` }, "Table");
    this.toggle.setAttribute("aria-label", `${title} as a table`);
    this.layer = svg("g");
    this.cross = svg("g", { class: "cross" });
    this.picture = svg("svg", { class: "chart", role: "slider", tabindex: "0", "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0" }, this.layer, this.cross);
    this.tip = el("div", { class: "tip", "aria-hidden": "true", hidden: "" });
    this.stage = el("div", { class: "stage" }, this.picture, this.tip);
    this.note = el("p", { class: "note muted" });
    this.body = el("tbody");
    const heads = ["Time", ...series.map((one) => one.name)].map((text) => el("th", { scope: "col" }, text));
    this.table = el("div", { class: "scroll", id: `${name}-table`, tabindex: "0", role: "region", "aria-label": `${title}, table`, hidden: "" },
      el("table", {}, el("thead", {}, el("tr", {}, ...heads)), this.body));
    const head = el("figcaption", { class: "headline" }, el("h3", {}, title), this.now, this.toggle);
    this.figure = el("figure", { class: "card" }, head, this.stage, this.note, this.table);
    this.listen();
  }

  listen() {
    this.toggle.addEventListener("click", () => this.flip());
    this.picture.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.picture.addEventListener("pointerdown", (event) => this.point(event.offsetX));
    for (const left of ["pointerleave", "blur"]) this.picture.addEventListener(left, () => this.choose(null));
    this.picture.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.stage);
  }

  // view: {at: [s], values: [[…] per series], now (s), limit, forecast: {seconds, rate}, current, note}
  update(view) {
    this.view = view;
    say(this.now, view.current);
    say(this.note, view.note ?? "");
    this.note.hidden = !view.note;
    set(this.picture, { "aria-label": `${this.title}: ${view.current}. ${view.note ?? ""}`.trim(), "aria-valuemax": Math.max(0, view.at.length - 1) });
    this.draw();
    this.tabulate();
  }

  // drawing

  draw() {
    const width = Math.floor(this.stage.clientWidth);
    if (!this.view || width < 50) return;
    this.width = width;
    set(this.picture, { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT });
    this.scale();
    this.layer.replaceChildren(...this.axes(), ...this.limit(), ...this.forecast(), ...this.lines());
    if (!this.view.at.length) this.layer.append(svg("text", { class: "empty", x: width / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "Nothing measured yet"));
    this.mark();
  }

  scale() {
    const { at, now, values, limit, forecast } = this.view;
    this.from = Math.max(now - SPAN_S, Math.min(at[0] ?? now, now - YOUNG_S));
    const ahead = forecast ? Math.min(Math.max(forecast.seconds * 1.15, YOUNG_S / 2), (now - this.from) * 0.6) : 0;
    this.to = now + ahead;
    this.x = linear(this.from, this.to, EDGE.left, this.width - EDGE.right);
    const known = values.flat().filter((value) => value !== null);
    const highest = Math.max(...known, 0);
    if (this.log) {
      const positive = known.filter((value) => value > 0);
      this.marks = positive.length ? decades(Math.min(...positive), Math.max(...positive)) : [1, 10, 100];
      this.y = logarithmic(this.marks[0], this.marks.at(-1), HEIGHT - EDGE.bottom, EDGE.top);
      return;
    }
    const foreseen = forecast ? highest + forecast.rate * Math.min(forecast.seconds, ahead) : highest;
    const near = limit !== null && limit !== undefined && limit < foreseen * 8;
    this.marks = ticks(Math.max(near ? limit * 1.05 : foreseen, this.base === 1024 ? 1024 : 1), 4, this.base);
    this.y = linear(0, this.marks.at(-1), HEIGHT - EDGE.bottom, EDGE.top);
  }

  axes() {
    const right = this.width - EDGE.right;
    const rows = this.marks.map((mark) => svg("g", {},
      svg("line", { class: "grid-line", x1: EDGE.left, x2: right, y1: this.y(mark), y2: this.y(mark) }),
      svg("text", { class: "axis", x: EDGE.left - 8, y: this.y(mark) + 4, "text-anchor": "end" }, this.format(mark))));
    const columns = timeTicks(this.from, this.to, Math.floor(this.width / 90)).map((at) =>
      svg("text", { class: "axis", x: this.x(at), y: HEIGHT - 6, "text-anchor": "middle" }, minute(at * 1000)));
    return [...rows, ...columns.filter((text) => Number(text.getAttribute("x")) > EDGE.left + 8 && Number(text.getAttribute("x")) < this.width - 18)];
  }

  limit() {
    const { limit } = this.view;
    if (limit === null || limit === undefined || limit > this.marks.at(-1)) return [];
    const y = this.y(limit);
    return [
      svg("line", { class: "limit", x1: EDGE.left, x2: this.width - EDGE.right, y1: y, y2: y }),
      svg("text", { class: "limit-word", x: EDGE.left + 6, y: y - 5 }, `limit ${this.format(limit)}`),
    ];
  }

  forecast() {
    const { forecast, now, values } = this.view;
    const last = values[0].at(-1);
    if (!forecast || last === null || last === undefined) return [];
    const seconds = Math.min(forecast.seconds, this.to - now);
    const end = [this.x(now + seconds), this.y(Math.min(last + forecast.rate * seconds, this.marks.at(-1)))];
    const today = svg("line", { class: "today", x1: this.x(now), x2: this.x(now), y1: EDGE.top, y2: HEIGHT - EDGE.bottom });
    const line = svg("line", { class: "forecast", x1: this.x(now), y1: this.y(last), x2: end[0], y2: end[1] });
    const reached = forecast.seconds <= seconds ? [svg("path", { class: "reached", d: `M${end[0] - 5} ${end[1] - 5}l10 10m0 -10l-10 10` })] : [];
    return [today, line, ...reached];
  }

  lines() {
    const { at, values } = this.view;
    const ends = [];
    const drawn = this.series.flatMap((one, n) => {
      const points = at.map((time, i) => (values[n][i] === null || time < this.from ? null : [this.x(time), this.y(values[n][i])]));
      const { drawn: d, lonely } = path(points);
      const last = points.findLast((point) => point !== null);
      if (last && this.series.length > 1) ends.push({ x: last[0], y: last[1], text: one.name, n });
      return [svg("path", { class: `line line-${n}`, d }), ...lonely.map(([cx, cy]) => svg("circle", { class: `dot dot-${n}`, cx, cy, r: 2 }))];
    });
    ends.sort((a, b) => a.y - b.y);
    ends.forEach((end, n) => {
      if (n > 0) end.y = Math.max(end.y, ends[n - 1].y + 13);
    });
    return [...drawn, ...ends.map((end) => svg("text", { class: `end end-${end.n}`, x: end.x + 5, y: end.y + 4 }, end.text))];
  }

  // reading single values

  point(x) {
    if (!this.view?.at.length) return;
    const time = this.from + ((x - EDGE.left) / (this.width - EDGE.left - EDGE.right)) * (this.to - this.from);
    const { at } = this.view;
    this.choose(at.reduce((best, one) => (Math.abs(one - time) < Math.abs(best - time) ? one : best), at[0]));
  }

  key(event) {
    const { at } = this.view ?? { at: [] };
    if (!at.length) return;
    const here = this.chosen === null ? at.length - 1 : Math.max(0, at.indexOf(this.chosen));
    const steps = { ArrowLeft: here - 1, ArrowDown: here - 1, ArrowRight: here + 1, ArrowUp: here + 1, PageUp: here - 12, PageDown: here + 12, Home: 0, End: at.length - 1 };
    if (event.key === "Escape") this.choose(null);
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.choose(at[Math.min(at.length - 1, Math.max(0, steps[event.key]))]);
  }

  choose(time) {
    this.chosen = time;
    this.mark();
  }

  mark() {
    const { at = [], values = [] } = this.view ?? {};
    const i = at.indexOf(this.chosen);
    this.cross.replaceChildren();
    this.tip.hidden = i < 0;
    const shown = i < 0 ? at.length - 1 : i;
    set(this.picture, { "aria-valuenow": Math.max(0, shown), "aria-valuetext": shown < 0 ? "nothing measured yet" : this.words(shown).join(", ") });
    if (i < 0) return;
    const x = this.x(at[i]);
    this.cross.append(svg("line", { x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }));
    values.forEach((list, n) => {
      if (list[i] !== null) this.cross.append(svg("circle", { class: `dot-${n}`, cx: x, cy: this.y(list[i]), r: 4 }));
    });
    this.tip.replaceChildren(...this.words(i).map((line) => el("span", {}, line)));
    const beside = x > this.width / 2 ? x - this.tip.offsetWidth - 10 : x + 10;
    this.tip.style.translate = `${Math.max(0, beside)}px 0`;
  }

  words(i) {
    const { at, values } = this.view;
    const name = (one) => (this.series.length > 1 ? `${one.name} ` : "");
    return [clock(at[i] * 1000), ...this.series.map((one, n) => `${name(one)}${values[n][i] === null ? UNKNOWN : this.format(values[n][i])}`)];
  }

  // the table

  flip() {
    this.table.hidden = !this.table.hidden;
    set(this.toggle, { "aria-expanded": String(!this.table.hidden) });
    this.tabulate();
  }

  tabulate() {
    if (this.table.hidden || !this.view) return;
    const { at, values } = this.view;
    const rows = at.map((time, i) => [time, ...values.map((list) => list[i])]).reverse();
    reconcile(
      this.body,
      rows,
      ([time]) => String(time),
      ([time, ...found]) => el("tr", {}, el("th", { scope: "row" }, clock(time * 1000)), ...found.map((value) => el("td", { class: "number" }, value === null ? UNKNOWN : this.format(value)))),
      () => {},
    );
  }
}
