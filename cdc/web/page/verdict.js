// Shows whether the service is ready, why not, and the line to paste that mends it.

import { byId, el, reconcile, say, set, shape } from "./dom.js";
import { duration, sentence } from "./words.js";

const COPIED_MS = 2000;

let announced = null;

export function show(status, nowMillis) {
  const since = duration((nowMillis - Date.parse(status.phase.since)) / 1000);
  const warned = status.warnings.length ? `, ${status.warnings.length} warning${status.warnings.length > 1 ? "s" : ""}` : "";
  head(status.ready ? (status.warnings.length ? "warn" : "ok") : "bad", (status.ready ? "Ready" : "Not ready") + warned, `${sentence(status.phase.name.replace("_", " "))} for ${since}`);
  list(byId("reasons"), status.reasons, "bad");
  list(byId("warnings"), status.warnings, "warn");
  announce([status.ready ? "Ready" : "Not ready", ...status.reasons.map(spoken), ...status.warnings.map((one) => `Warning: ${spoken(one)}`)]);
}

export function unanswered(why, secondsAgo) {
  const seen = secondsAgo === null ? "It has not answered yet" : `Last seen ${duration(secondsAgo)} ago; what is below is from then`;
  head("bad", "No answer", why ? `${seen} (${why})` : seen);
  if (secondsAgo === null) [byId("reasons"), byId("warnings")].forEach((one) => (one.hidden = true));
  announce(["No answer from the service"]);
}

function head(state, word, phase) {
  const icon = byId("verdict-shape");
  set(byId("verdict"), { class: `verdict ${state}` });
  if (icon.dataset.state !== state) icon.replaceChildren(shape(state));
  icon.dataset.state = state;
  say(byId("verdict-word"), word);
  say(byId("verdict-phase"), phase);
}

const spoken = ({ subject, message }) => `${subject}: ${message}`;

// Seconds and bytes in a message change with each answer; the message is the same.
const lasting = (text) => text.replace(/[\d.,]+/g, "#");

// A screen reader speaks only what changed.
function announce(lines) {
  const said = lines.join(". ");
  if (announced === lasting(said)) return;
  announced = lasting(said);
  say(byId("announcement"), said);
}

export function list(parent, notices, state) {
  parent.hidden = notices.length === 0;
  reconcile(parent, notices, (one) => lasting(spoken(one)) + one.hint, () => notice(state), write);
}

function notice(state) {
  const code = el("code");
  const button = el("button", { type: "button", class: "quiet" }, "Copy");
  button.addEventListener("click", () => copy(code, button));
  return el("li", { class: `notice ${state}` }, shape(state), el("p", {}, el("strong"), " ", el("span")), el("div", { class: "hint" }, code, button, el("span", { class: "muted" })));
}

function write(node, { subject, message, hint }) {
  const [command, aside] = parts(hint);
  say(node.querySelector("strong"), subject);
  say(node.querySelector("p span"), message);
  node.querySelector(".hint").hidden = !hint;
  say(node.querySelector("code"), command);
  set(node.querySelector("button"), { "aria-label": `Copy: ${command}` });
  say(node.querySelector(".hint .muted"), aside);
}

// "SELECT …;  (if nobody needs it)": the statement is to be pasted, the remark is not.
function parts(hint) {
  const found = /^(.*?;) {2}\((.*)\)$/.exec(hint);
  return found ? [found[1], found[2]] : [hint, ""];
}

async function copy(code, button) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    say(button, "Copied");
  } catch {
    // No clipboard without TLS on another machine: selected, it takes one key.
    getSelection().selectAllChildren(code);
    say(button, "Selected");
  }
  setTimeout(() => say(button, "Copy"), COPIED_MS);
}
