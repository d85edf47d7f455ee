// The page asks for the status, and hands each answer to the modules that draw a part of it. Ages are counted from the
// service's own clock.

import * as cards from "./cards.js";
import * as charts from "./charts.js";
import { byId, say, set } from "./dom.js";
import * as events from "./events.js";
import * as pipeline from "./pipeline.js";
import { Poll } from "./poll.js";
import * as slots from "./slots.js";
import * as verdict from "./verdict.js";
import { clock, duration } from "./words.js";

const TICK_MS = 1000;
const PARTS = [verdict, pipeline, charts, slots, cards, events];

let status = null;
let receivedAt = 0;
let failure = null;

const age = () => (performance.now() - receivedAt) / 1000;

const poll = new Poll({
  answered(found) {
    [status, receivedAt, failure] = [found, performance.now(), null];
    look("board");
    document.body.classList.remove("stale");
    const now = Date.parse(found.now);
    for (const part of PARTS) part.show(found, now);
    introduce(found);
    tick();
  },

  unanswered(why, retryMs) {
    failure = { why, retryAt: performance.now() + retryMs };
    if (byId("gate").hidden) look("board");
    document.body.classList.add("stale");
    tick();
  },

  locked(refused) {
    [status, failure] = [null, null];
    look("gate");
    say(byId("gate-error"), refused ? "That is not this service's token." : "");
    say(byId("freshness"), "locked");
    if (refused) byId("token").setAttribute("aria-invalid", "true");
    byId("token").focus();
  },
});

function look(shown) {
  for (const id of ["gate", "board"]) byId(id).hidden = id !== shown;
  byId("forget").hidden = poll.token === null;
}

function introduce(found) {
  const source = found.source ? `${found.source.database} · slot ${found.source.slot} · timeline ${found.source.timeline}` : "not connected yet";
  say(byId("source"), source);
  say(byId("version"), `waltier ${found.version}, up for ${duration((Date.parse(found.now) - Date.parse(found.started_at)) / 1000)}`);
  say(document.querySelector("title"), `${found.ready ? "ready" : "NOT READY"} · ${found.source?.database ?? "waltier"}`);
}

// Ages grow between two answers, too.
function tick() {
  byId("retry").hidden = failure === null;
  set(byId("freshness"), { class: failure ? "freshness bad" : "freshness" });
  if (failure) {
    verdict.unanswered(failure.why, status ? age() : null);
    const wait = Math.max(0, Math.ceil((failure.retryAt - performance.now()) / 1000));
    say(byId("freshness"), wait ? `no answer, next try in ${wait} s` : "no answer, trying");
    say(document.querySelector("title"), "NO ANSWER · waltier");
  } else if (status) {
    say(byId("freshness"), `${age() < 4 ? "live" : `seen ${duration(age())} ago`}, ${clock(Date.parse(status.now))} UTC`);
  }
}

for (const part of [pipeline, charts, events]) part.open();
byId("retry").addEventListener("click", () => poll.now());
byId("forget").addEventListener("click", () => {
  poll.token = null;
});
byId("gate").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = byId("token").value.trim();
  byId("token").value = "";
  if (/^[!-~]+$/.test(given)) poll.token = given;
  else say(byId("gate-error"), "A token has letters, digits and signs only.");
});
addEventListener("error", () => say(byId("freshness"), "this page made a mistake; reload it"));
setInterval(tick, TICK_MS);
poll.now();
