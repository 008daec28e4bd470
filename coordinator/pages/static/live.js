// Keeps a study's page up to date: listens to the study's events and loads the changed panels.

const root = document.querySelector("[data-study]");
const path = `/studies/${root.dataset.study}`;
const status = document.getElementById("live");
const IDLE_REFRESH_MS = 10_000; // heartbeats change the workers' panel without an event
const MIN_REFRESH_MS = 1_500;

let last = root.dataset.after;
let source = null;
let timer = null;
let requestedAt = 0;
let took = 0; // milliseconds of the last request
const shown = new Map();
for (const panel of document.querySelectorAll("[data-panel]")) shown.set(panel.id, panel.outerHTML);

function listen() {
  source = new EventSource(`${path}/events?after=${encodeURIComponent(last)}`);
  source.onopen = () => {
    showStatus("on", "live");
    refresh(0);
  };
  source.onerror = () => {
    showStatus("off", "reconnecting …");
    // The browser gives up after a reply that is not a stream, such as that of a starting coordinator.
    if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2_000);
  };
  for (const kind of ["fold_accepted", "trial_ended", "study_moved", "study_changed", "study_deleted"]) {
    source.addEventListener(kind, (event) => {
      last = event.lastEventId;
      if (kind === "study_deleted") location.assign("/");
      root.dispatchEvent(new CustomEvent("study-event", { detail: JSON.parse(event.data) }));
      refresh(MIN_REFRESH_MS);
    });
  }
}

function showStatus(kind, text) {
  status.className = `live ${kind}`;
  if (status.textContent !== text) status.textContent = text;
}

function refresh(wait) {
  // Panels that take long to load are loaded less often.
  const due = Math.max(performance.now() + wait / 10, requestedAt + Math.max(wait, 8 * took));
  if (timer !== null && timer.due <= due) return;
  if (timer !== null) clearTimeout(timer.id);
  timer = { due, id: setTimeout(load, Math.max(0, due - performance.now())) };
}

async function load() {
  timer = null;
  requestedAt = performance.now();
  try {
    const answer = await fetch(`${path}/panels`, { headers: { Accept: "text/html" } });
    if (answer.redirected) return location.reload(); // signed out
    if (answer.ok) replace(await answer.text());
  } catch {
    // The stream fails too, and reconnects when the coordinator is back.
  }
  took = performance.now() - requestedAt;
  if (!document.hidden) refresh(IDLE_REFRESH_MS);
}

function replace(html) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  for (const panel of fresh.querySelectorAll("[data-panel]")) {
    const old = document.getElementById(panel.id);
    if (old === null || shown.get(panel.id) === panel.outerHTML) continue;
    // The user is about to press a button in this panel.
    if (old.querySelector("details[open]") !== null) continue;
    shown.set(panel.id, panel.outerHTML);
    const focused = old.contains(document.activeElement) ? document.activeElement.id : "";
    old.replaceWith(document.adoptNode(panel));
    if (focused) document.getElementById(focused)?.focus();
  }
  root.dispatchEvent(new CustomEvent("refreshed", { detail: document.getElementById("panel-summary").dataset }));
}

// --- The slow panel: loaded after the first paint, and again when more trials are complete -----------------

const lazy = document.querySelector("[data-fragment]");
const LAZY_MS = 15_000;
let complete = null;
let lazyRequestedAt = -LAZY_MS;

async function loadLazy(now) {
  if (now.complete === complete || performance.now() - lazyRequestedAt < LAZY_MS) return;
  lazyRequestedAt = performance.now();
  complete = now.complete;
  const answer = await fetch(lazy.dataset.fragment, { headers: { Accept: "text/html" } }).catch(() => null);
  if (!answer?.ok || answer.redirected) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("parameter-panels");
  if (fresh !== null) lazy.replaceChildren(document.adoptNode(fresh));
}

root.addEventListener("refreshed", (event) => loadLazy(event.detail));

document.addEventListener("visibilitychange", () => {
  // Browsers allow few connections per host, so a hidden page keeps none.
  if (document.hidden) source.close();
  else listen();
});

listen();
