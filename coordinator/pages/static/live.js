// Keeps the page of a study as the study is: listens to its events, and asks for the panels that follow from them.

const root = document.querySelector("[data-study]");
const path = `/studies/${root.dataset.study}`;
const word = document.getElementById("live");
const QUIET_MS = 10_000; // heartbeats make no events, yet workers go on
const SOONEST_MS = 1_500;

let last = root.dataset.after;
let source = null;
let timer = null;
let asked = 0;
let took = 0;
const shown = new Map();
for (const panel of document.querySelectorAll("[data-panel]")) shown.set(panel.id, panel.outerHTML);

function listen() {
  source = new EventSource(`${path}/events?after=${encodeURIComponent(last)}`);
  source.onopen = () => {
    say("on", "live");
    refresh(0);
  };
  source.onerror = () => {
    say("off", "connecting again …");
    // After an answer that is no stream, as of a coordinator that starts, the browser gives up; we do not.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2_000);
  };
  for (const kind of ["fold_accepted", "trial_ended", "study_moved", "study_changed", "study_deleted"]) {
    source.addEventListener(kind, (event) => {
      last = event.lastEventId;
      if (kind === "study_deleted") location.assign("/");
      root.dispatchEvent(new CustomEvent("told", { detail: JSON.parse(event.data) }));
      refresh(SOONEST_MS);
    });
  }
}

function say(kind, text) {
  word.className = `live ${kind}`;
  if (word.textContent !== text) word.textContent = text;
}

function refresh(wait) {
  // A page that takes long is asked for less often.
  const due = Math.max(performance.now() + wait / 10, asked + Math.max(wait, 8 * took));
  if (timer !== null && timer.due <= due) return;
  if (timer !== null) clearTimeout(timer.id);
  timer = { due, id: setTimeout(load, Math.max(0, due - performance.now())) };
}

async function load() {
  timer = null;
  asked = performance.now();
  try {
    const answer = await fetch(`${path}/panels`, { headers: { Accept: "text/html" } });
    if (answer.redirected) return location.reload(); // signed out
    if (answer.ok) replace(await answer.text());
  } catch {
    // The stream notices too, and tells when the coordinator is back.
  }
  took = performance.now() - asked;
  if (!document.hidden) refresh(QUIET_MS);
}

function replace(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  for (const panel of fresh.querySelectorAll("[data-panel]")) {
    const old = document.getElementById(panel.id);
    if (old === null || shown.get(panel.id) === panel.outerHTML) continue;
    // Somebody is about to press something in there.
    if (old.querySelector("details[open]") !== null) continue;
    shown.set(panel.id, panel.outerHTML);
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    old.replaceWith(document.adoptNode(panel));
    if (focused) document.getElementById(focused)?.focus();
  }
  root.dispatchEvent(new CustomEvent("refreshed", { detail: document.getElementById("panel-summary").dataset }));
}

// --- Panels that take longer: asked for after the first paint, and again when there is more to tell ---------

const lazy = document.querySelector("[data-fragment]");
const LAZY_MS = 15_000;
let complete = null;
let lazyAsked = -LAZY_MS;

async function loadLazy(now) {
  if (now.complete === complete || performance.now() - lazyAsked < LAZY_MS) return;
  lazyAsked = performance.now();
  complete = now.complete;
  const answer = await fetch(lazy.dataset.fragment, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok || answer.redirected) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("parameter-panels");
  if (fresh !== null) lazy.replaceChildren(document.adoptNode(fresh));
}

root.addEventListener("refreshed", (event) => loadLazy(event.detail));

document.addEventListener("visibilitychange", () => {
  // A browser has few connections to a host; a page that nobody sees needs none.
  if (document.hidden) source.close();
  else listen();
});

listen();
