// Log lines: followed as they come, searched, of one level, source or attempt, from the end or in pages from the beginning.
// `data-log` is where the API has them. With `data-stream-of` they come by the page's stream,
// which begins here, so that no line comes before there is somebody to show it; else they are asked for.
import { ask } from "./actions.js";
import { follow, live, onEvent } from "./live.js";

const TAIL = 500;
const PAGE = 1000;
const MOST = 5000; // lines in the page: older ones leave it
const POLL_MS = 3000;
const logs = new WeakMap();

export function mount(found) {
  for (const root of found) if (!logs.has(root)) logs.set(root, new Log(root));
}

class Log {
  constructor(root) {
    this.root = root;
    this.api = root.dataset.log;
    this.stream = root.dataset.streamOf;
    this.cursor = null;
    this.stuck = true; // to the end
    this.asked = 0; // which question an answer belongs to
    this.build();
    if (this.stream) {
      onEvent("open", () => { if (this.fetched) { this.fetched = false; this.box.replaceChildren(); } }); // it has them too
      onEvent("log", (event) => this.follows && this.add(JSON.parse(event.data).lines));
    } else setInterval(() => this.poll(), POLL_MS);
    this.load();
  }

  get follows() { return this.filters.from.value === "end"; }

  build() {
    const attempts = JSON.parse(this.root.dataset.attempts ?? "[]");
    const workers = JSON.parse(this.root.dataset.workers ?? "[]");
    const ranks = Math.max(0, ...workers.map((each) => each ?? 0));
    const sources = [...(this.stream ? ["driver"] : []), ...Array.from({ length: ranks }, (_, rank) => `rank-${rank}`)];
    const row = document.createElement("div");
    row.className = "filters";
    this.filters = {
      search: field(row, "Search", Object.assign(document.createElement("input"), { type: "search", maxLength: 200 })),
      level: field(row, "Level", select([["", "all"], ["info", "info and above"], ["warning", "warnings and errors"], ["error", "errors"]])),
      source: field(row, "Source", select([["", "all"], ...sources.map((each) => [each, each])])),
      attempt: field(row, "Attempt", select([["", "all"], ...attempts.map((each) => [each, each])])),
      from: field(row, "From", select([["end", "the end, following"], ["start", "the beginning"]])),
    };
    this.filters.source.closest(".field").hidden = sources.length < 2;
    this.filters.attempt.closest(".field").hidden = attempts.length < 2;
    let later = null;
    row.addEventListener("input", (event) => { clearTimeout(later); later = setTimeout(() => this.load(), event.target.type === "search" ? 350 : 0); });
    this.box = Object.assign(document.createElement("div"), { className: "log", tabIndex: 0 });
    this.box.setAttribute("role", "log");
    this.box.setAttribute("aria-label", "Log lines");
    this.box.setAttribute("aria-live", "off"); // hundreds of lines a second are nobody's news
    this.box.addEventListener("scroll", () => { this.stuck = this.box.scrollHeight - this.box.scrollTop - this.box.clientHeight < 40; this.end.hidden = this.stuck; });
    const foot = Object.assign(document.createElement("div"), { className: "actions" });
    this.end = Object.assign(document.createElement("button"), { type: "button", textContent: "To the end", hidden: true });
    this.end.addEventListener("click", () => { this.box.scrollTop = this.box.scrollHeight; });
    this.more = Object.assign(document.createElement("button"), { type: "button", textContent: "More", hidden: true });
    this.more.addEventListener("click", () => this.page());
    this.note = Object.assign(document.createElement("span"), { className: "quiet" });
    foot.append(this.more, this.end, this.note);
    this.root.append(row, this.box, foot);
  }

  query(more) {
    const found = new URLSearchParams(more);
    for (const name of ["search", "level", "source", "attempt"]) if (this.filters[name].value) found.set(name, this.filters[name].value);
    return found;
  }

  // Begin anew with what is chosen now.
  async load() {
    this.asked += 1;
    this.cursor = null;
    this.box.replaceChildren();
    this.stuck = this.follows;
    this.more.hidden = true;
    if (this.filters.from.value === "start") return this.page();
    if (this.stream) {
      this.say();
      follow(`${this.stream}?${this.query({ tail: TAIL })}`);
      if (live()) return undefined;
      this.fetched = true;
    }
    return this.get({ tail: TAIL });
  }

  async get(more) {
    const asked = this.asked;
    try {
      const { found } = await ask("GET", `${this.api}?${this.query(more)}`);
      if (asked !== this.asked) return null;
      this.cursor = found.next_cursor ?? this.cursor;
      this.add(found.items);
      return found;
    } catch (error) {
      if (!error.problem) throw error;
      this.note.textContent = `Could not be loaded: ${error.problem.detail}`;
      return null;
    }
  }

  async page() {
    this.more.disabled = true;
    const asked = this.asked;
    let found;
    do { // a part of a large log may have no line like that
      this.note.textContent = "Reading …";
      found = await this.get({ limit: PAGE, ...(this.cursor ? { cursor: this.cursor } : {}) });
    } while (found?.more && !found.items.length && asked === this.asked);
    if (asked !== this.asked) return; // another question has begun
    this.more.disabled = false;
    this.more.hidden = !found?.more;
    this.more.textContent = "More lines";
  }

  async poll() {
    if (!live() || document.hidden || this.busy || !this.follows || !this.root.isConnected) return;
    const over = this.root.dataset.ended !== undefined;
    if (over && this.over) return;
    this.over = over; // after the end once more, for the last lines
    this.busy = true;
    try {
      if (this.cursor) await this.get({ limit: PAGE, cursor: this.cursor });
      else { this.box.replaceChildren(); await this.get({ tail: TAIL }); } // the last lines come without a cursor
    } finally {
      this.busy = false;
    }
  }

  add(lines) {
    if (!lines.length) return this.say();
    const words = this.filters.search.value.toLowerCase();
    this.box.append(...lines.map((line) => shown(line, words)));
    for (let over = this.box.childElementCount - MOST; over > 0; over--) this.box.firstElementChild.remove();
    if (this.stuck) this.box.scrollTop = this.box.scrollHeight;
    return this.say();
  }

  say() {
    const count = this.box.childElementCount;
    const filtered = ["search", "level", "source", "attempt"].some((name) => this.filters[name].value);
    // Of a large log the service looks through the last part alone.
    const near = filtered && this.follows && count < TAIL ? " near the end; from the beginning all of it is searched" : "";
    if (count) this.note.textContent = `${count} line${count === 1 ? "" : "s"}${count >= MOST ? ", the newest" : near}`;
    else this.note.textContent = filtered ? `No line matches the filters${near}.` : this.root.dataset.ended !== undefined ? "The log is empty." : "The log is empty so far.";
  }
}

let fields = 0;
function field(row, text, control) {
  const box = Object.assign(document.createElement("div"), { className: "field" });
  control.id = `log-filter-${(fields += 1)}`;
  box.append(Object.assign(document.createElement("label"), { textContent: text, htmlFor: control.id }), control);
  row.append(box);
  return control;
}

function select(options) {
  const made = document.createElement("select");
  for (const [value, text] of options) made.append(new Option(text, value));
  return made;
}

function shown(line, words) {
  const row = Object.assign(document.createElement("div"), { className: `log-line ${line.level}` });
  const time = new Date(line.time * 1000);
  const local = new Date(time - time.getTimezoneOffset() * 60000).toISOString();
  const cells = [local.slice(0, 19).replace("T", " "), `${line.attempt > 1 ? `${line.attempt} ` : ""}${line.source}`, line.level];
  row.append(...cells.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
  const message = document.createElement("span");
  marked(message, line.message, words);
  row.append(message);
  row.firstChild.title = time.toISOString();
  return row;
}

function marked(place, text, words) {
  if (!words) { place.textContent = text; return; }
  const low = text.toLowerCase();
  let at = 0;
  for (let next = low.indexOf(words); next >= 0; next = low.indexOf(words, at)) {
    place.append(text.slice(at, next), Object.assign(document.createElement("mark"), { textContent: text.slice(next, next + words.length) }));
    at = next + words.length;
  }
  place.append(text.slice(at));
}
