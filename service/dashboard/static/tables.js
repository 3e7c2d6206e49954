// Tables in which rows are chosen, and whose columns are.
//
// `data-select` is a table with a checkbox a row. What is chosen lives in the address, so that it stays over refreshes,
// pages and sorting, and goes with a link. Buttons of its form say how many they need: `data-chosen="2-6"`, or of those in
// one state alone `data-of="running"`; with `data-each="POST /v1/…/{value}/…"` a button asks that of each.
// `data-columns="key"` is a table with `data-column` on its cells; `data-chooser="ID"` is where one chooses them.
import { ask, confirmed, toast } from "./actions.js";
import { refresh } from "./live.js";

const chosen = new Map(); // table's id -> value -> state
const bound = new WeakSet();

const boxes = (table) => [...table.querySelectorAll("tbody input[type=checkbox][name]")];
const nameOf = (table) => table.dataset.select || boxes(table)[0]?.name;

export function mount(found) {
  for (const table of found) {
    if (table.dataset.select !== undefined) select(table);
    if (table.dataset.columns) columns(table);
  }
}

// --- rows ------------------------------------------------------------------------------------------------------------
function select(table) {
  if (!chosen.has(table.id)) chosen.set(table.id, new Map(new URLSearchParams(location.search).getAll(nameOf(table)).map((value) => [value, ""])));
  const mine = chosen.get(table.id);
  for (const box of boxes(table)) {
    box.checked = mine.has(box.value);
    if (box.checked) mine.set(box.value, stateOf(box));
  }
  if (!bound.has(table)) {
    bound.add(table);
    table.addEventListener("change", ({ target }) => {
      if (!target.matches("input[type=checkbox][name]")) return;
      if (target.checked) mine.set(target.value, stateOf(target)); else mine.delete(target.value);
      show(table, mine);
    });
  }
  show(table, mine);
}

const stateOf = (box) => box.closest("tr").dataset.state ?? "";

function show(table, mine) {
  const name = nameOf(table), url = new URL(location.href);
  url.searchParams.delete(name);
  for (const value of mine.keys()) url.searchParams.append(name, value);
  if (url.href !== location.href) history.replaceState(history.state, "", url);
  const form = table.closest("form");
  if (!form) return;
  for (const button of form.querySelectorAll("button[data-chosen]")) {
    button.dataset.label ??= button.textContent.trim();
    const count = wanted(button, mine).length;
    const [least, most] = button.dataset.chosen.split("-").map((each) => Number(each) || Infinity);
    button.textContent = count ? `${button.dataset.label} (${count})` : button.dataset.label;
    button.disabled = count < least || count > most;
    if (button.dataset.each && !bound.has(button)) { bound.add(button); button.addEventListener("click", () => each(button, mine, table)); }
  }
  carry(form, table, name, mine);
}

const wanted = (button, mine) => [...mine].filter(([, state]) => !button.dataset.of || state === button.dataset.of).map(([value]) => value);

// What is chosen on other pages goes with the form too.
function carry(form, table, name, mine) {
  const here = new Set(boxes(table).map((box) => box.value));
  let place = form.querySelector("[data-carried]");
  if (!place) {
    place = Object.assign(document.createElement("div"), { hidden: true });
    place.dataset.carried = "";
    form.append(place);
  }
  place.replaceChildren(...[...mine.keys()].filter((value) => !here.has(value)).map((value) => Object.assign(document.createElement("input"), { type: "hidden", name, value })));
}

async function each(button, mine, table) {
  const values = wanted(button, mine);
  const text = values.length === 1 && button.dataset.textOne ? button.dataset.textOne : (button.dataset.text ?? "").replace("{count}", values.length);
  if (text && !(await confirmed(text, button.dataset.label))) return;
  const [method, url] = button.dataset.each.split(" ");
  for (const value of values) {
    try {
      await ask(method, url.replace("{value}", encodeURIComponent(value)));
      mine.delete(value);
    } catch (error) {
      if (!error.problem) throw error;
      toast(error.problem.detail, { bad: true, id: error.problem.request_id });
    }
  }
  show(table, mine);
  await refresh();
}

// --- columns ---------------------------------------------------------------------------------------------------------
function columns(table) {
  const key = `rcmae-columns-${table.dataset.columns}`;
  const heads = [...table.querySelectorAll("thead [data-column]")];
  const hidden = new Set(read(key));
  for (const cell of table.querySelectorAll("[data-column]")) cell.hidden = hidden.has(cell.dataset.column);
  const place = document.querySelector(`[data-chooser="${table.id}"]`);
  if (!place) return;
  const names = heads.map((head) => head.dataset.column).join("\n");
  if (place.dataset.names === names) return;
  place.dataset.names = names;
  const menu = Object.assign(document.createElement("details"), { className: "menu" });
  const body = Object.assign(document.createElement("div"), { className: "menu-body" });
  menu.append(Object.assign(document.createElement("summary"), { className: "button", textContent: "Columns" }), body);
  for (const head of heads) {
    const name = head.dataset.column;
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !hidden.has(name) });
    const label = document.createElement("label");
    label.append(box, ` ${(head.querySelector("a")?.firstChild ?? head).textContent.trim()}`);
    body.append(label);
    box.addEventListener("change", () => {
      const now = new Set(read(key));
      if (box.checked) now.delete(name); else now.add(name);
      localStorage.setItem(key, JSON.stringify([...now]));
      columns(document.getElementById(table.id));
    });
  }
  place.replaceChildren(menu);
}

function read(key) {
  try {
    const found = JSON.parse(localStorage.getItem(key) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return []; // somebody else wrote it: all columns are shown
  }
}
