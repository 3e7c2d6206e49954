// One server-sent event stream a page. It says that something changed; the page is then asked for again and morphed.
import { ago } from "./times.js";

const SOONEST_MS = 2000; // between two refreshes
const REST = 10; // or so many times as long as the last one took: a busy service is asked less often
const LATEST_MS = 60000; // without any news: what no event tells of, as a deleted job
const MOVING_MS = 10000; // as well, where something shows what no event tells of and always moves: a running trial
const PATIENCE_MS = 3000; // before a lost connection is told
const HIDDEN_MS = 5000; // a browser has six connections to a host: a page that nobody looks at gives its own back
const KINDS = ["jobs", "job", "event", "metrics", "log", "end"];
const main = document.getElementById("main");
const switched = document.querySelector("[data-live-switch]");
const text = document.querySelector("[data-live-text]");
const banner = document.querySelector("[data-disconnected]");
const state = { on: localStorage.getItem("rcmae-live") !== "off", source: null, updated: Date.now(), lost: null, url: null, last: "", ended: false, waiting: null, busy: false, missed: false, took: 0, leaving: null };
const refreshed = [];
const listeners = new Map(); // by event, what other modules do with it

// Do something after every refresh of the page.
export const onRefresh = (done) => refreshed.push(done);

// Hear the stream's events of a kind (`log`, `job`, `metrics`, `event`, `end`).
export function onEvent(kind, done) {
  listeners.set(kind, [...(listeners.get(kind) ?? []), done]);
  state.source?.addEventListener(kind, done);
}

// Whether changes are followed as they happen.
export const live = () => state.on;

// Follow another address, for example with a filter on its log lines.
export function follow(url) {
  state.url = url;
  state.last = "";
  state.ended = false;
  open();
}

function show() {
  const kind = !state.on ? "off" : state.lost && Date.now() - state.lost > PATIENCE_MS ? "lost" : "on";
  switched.dataset.state = kind;
  switched.setAttribute("aria-pressed", String(state.on));
  const seconds = Math.round((Date.now() - state.updated) / 1000);
  text.textContent = kind === "off" ? "paused" : kind === "lost" ? "disconnected" : seconds < 2 ? "live" : `updated ${ago(new Date(state.updated).toISOString())}`;
  banner.hidden = kind !== "lost";
}

function close() {
  state.source?.close();
  state.source = null;
}

function open() {
  close();
  if (!state.on || state.ended || !state.url || document.hidden) return; // some pages have nothing that changes
  const after = state.last && `${state.url.includes("?") ? "&" : "?"}after=${encodeURIComponent(state.last)}`; // goes on there
  const source = new EventSource(state.url + after);
  state.source = source;
  for (const kind of KINDS) source.addEventListener(kind, ({ lastEventId }) => { state.last = lastEventId || state.last; });
  source.onopen = () => {
    if (state.lost) refreshSoon(); // what was missed meanwhile
    state.lost = null;
    show();
  };
  source.onerror = () => {
    state.lost ??= Date.now();
    if (source.readyState === EventSource.CLOSED) setTimeout(() => source === state.source && open(), 3000); // an answer that was no stream
    show();
  };
  source.addEventListener("end", () => {
    state.ended = true; // else the browser would begin again
    close();
    refreshSoon();
  });
  for (const kind of ["jobs", "job", "event"]) source.addEventListener(kind, heard);
  for (const [kind, all] of listeners) for (const done of all) source.addEventListener(kind, done);
}

function heard(event) {
  if (event.type === "jobs" && JSON.parse(event.data).jobs.length === 0) return; // it has begun
  refreshSoon();
}

export function refreshSoon() {
  if (!state.waiting) state.waiting = setTimeout(refresh, Math.max(150, Math.max(SOONEST_MS, REST * state.took) - (Date.now() - state.updated)));
}

export async function refresh() {
  clearTimeout(state.waiting);
  state.waiting = null;
  if (document.hidden || state.busy) {
    state.missed = true;
    return;
  }
  state.busy = true;
  const begin = Date.now();
  try {
    await htmx.ajax("GET", location.href, { target: main, select: "#main", swap: "morph", source: main });
  } finally {
    state.busy = false;
    state.took = Date.now() - begin;
    if (state.missed && !document.hidden) { state.missed = false; refreshSoon(); }
  }
}

// Something is on its way, of which no event tells.
function watchWhatComesSoon() {
  if (state.on && document.querySelector("[data-soon]")) refreshSoon();
}
watchWhatComesSoon();

document.body.setAttribute("hx-ext", "morph"); // not on main: a refresh gives that the attributes of the new one
document.body.addEventListener("htmx:afterSwap", (event) => {
  state.updated = Date.now();
  if (state.source?.readyState === EventSource.OPEN) state.lost = null;
  if (state.ended && main.dataset.over === undefined) { state.ended = false; open(); } // a job that had ended goes on
  for (const done of refreshed) done(event);
  watchWhatComesSoon();
  show();
});
// Whether an answer says that the session has ended: the limit on requests without a valid one turns 401 into 429.
export const sessionEnded = (status) => status === 401 || status === 429;
document.body.addEventListener("htmx:responseError", (event) => {
  if (sessionEnded(event.detail.xhr.status)) document.getElementById("ended").showModal();
  else state.lost ??= Date.now();
  show();
});
document.body.addEventListener("htmx:sendError", () => { state.lost ??= Date.now(); show(); });

// Links within a list (sort, next page) and filter forms change this page instead of loading another.
function go(url) {
  history.pushState(null, "", url);
  return refresh();
}
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-swap]");
  if (!link || event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  go(link.href);
});
let later = null;
function filter(form) {
  const query = new URLSearchParams([...new FormData(form)].filter(([, value]) => value !== ""));
  go(query.size ? `${location.pathname}?${query}` : location.pathname);
}
document.addEventListener("input", (event) => {
  const form = event.target.closest("form[data-filter]");
  if (!form) return;
  clearTimeout(later);
  later = setTimeout(() => filter(form), event.target.matches("select, [type=checkbox], [type=radio]") ? 0 : 350);
});
document.addEventListener("submit", (event) => {
  if (!event.target.matches("form[data-filter]")) return;
  event.preventDefault();
  filter(event.target);
});
addEventListener("popstate", () => location.reload());

switched.addEventListener("click", () => {
  state.on = !state.on;
  localStorage.setItem("rcmae-live", state.on ? "on" : "off");
  state.lost = null;
  if (state.on) { refresh(); open(); } else close();
  show();
});
banner.querySelector("[data-reconnect]").addEventListener("click", () => { open(); refresh(); });
document.addEventListener("visibilitychange", () => {
  clearTimeout(state.leaving);
  if (document.hidden) {
    if (state.source) state.leaving = setTimeout(() => { close(); state.missed = true; }, HIDDEN_MS);
    return;
  }
  if (!state.source) open();
  if (state.missed) { state.missed = false; refresh(); }
});
setInterval(show, 1000);
setInterval(() => { if (state.on && Date.now() - state.updated > (document.querySelector("[data-moving]") ? MOVING_MS : LATEST_MS)) refreshSoon(); }, 5000);
addEventListener("beforeunload", close);

const chosen = document.querySelector("[data-theme-switch]");
chosen.value = document.documentElement.dataset.theme ?? "auto";
chosen.addEventListener("change", () => {
  if (chosen.value === "auto") { delete document.documentElement.dataset.theme; localStorage.removeItem("rcmae-theme"); }
  else { document.documentElement.dataset.theme = chosen.value; localStorage.setItem("rcmae-theme", chosen.value); }
  document.dispatchEvent(new CustomEvent("rcmae:theme"));
});

state.url = main.dataset.stream;
open();
show();
