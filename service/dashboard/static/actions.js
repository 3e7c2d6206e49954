// Buttons and forms that change something. They ask the REST API, as everybody else does.
import { refresh, sessionEnded } from "./live.js";

const csrf = document.querySelector("meta[name=csrf]").content;
const toasts = document.querySelector("[data-toasts]");

// One request to the API. Throws a problem (RFC 9457) as `error.problem`.
export async function ask(method, url, body, headers = {}) {
  let answer;
  try {
    answer = await fetch(url, {
      method,
      headers: { "X-CSRF-Token": csrf, ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw problem({ title: "No connection", detail: "The service is unreachable. Your change may not have been made: check before you try again.", status: 0 });
  }
  if (sessionEnded(answer.status)) document.getElementById("ended").showModal();
  if (!answer.ok) throw problem(await answer.json().catch(() => ({ title: answer.statusText, detail: `the service answered ${answer.status}`, status: answer.status })));
  return { answer, found: answer.headers.get("Content-Type")?.includes("json") ? await answer.json() : await answer.text() };
}

function problem(told) {
  return Object.assign(new Error(told.detail), { problem: told });
}

// A message. What went wrong stays until somebody has read it.
export function toast(message, { bad = false, id = "", again = null } = {}) {
  const box = document.createElement("div");
  box.className = bad ? "toast bad" : "toast";
  if (bad) box.setAttribute("role", "alert");
  const line = document.createElement("p");
  line.textContent = message;
  box.append(line);
  if (id) {
    const small = document.createElement("p");
    small.className = "quiet";
    small.textContent = `request ${id}`;
    box.append(small);
  }
  if (bad) {
    const row = document.createElement("div");
    row.className = "actions";
    if (again) row.append(button("Try again", () => { box.remove(); again(); }));
    row.append(button("Dismiss", () => box.remove()));
    box.append(row);
  } else setTimeout(() => box.remove(), 5000);
  toasts.append(box);
}

function button(text, done) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "small";
  made.textContent = text;
  made.addEventListener("click", done);
  return made;
}

export function confirmed(title, yes) {
  const dialog = document.getElementById("confirm");
  dialog.querySelector("[data-confirm-title]").textContent = `${yes}?`;
  dialog.querySelector("[data-confirm-text]").textContent = title;
  dialog.querySelector("[data-confirm-yes]").textContent = yes;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((settle) => dialog.addEventListener("close", () => settle(dialog.returnValue === "yes"), { once: true }));
}

function after(then, answer, found) {
  const place = then === "Location" ? pageOf(answer.headers.get("Location"), found) : then;
  if (place === "refresh" || !place) return refresh();
  if (place !== "nothing") location.assign(place.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(found[name])));
}

function pageOf(location, found) {
  return found?.kind === "search" ? `/searches/${found.id}` : location?.replace(/^\/v1/, "") ?? "refresh";
}

document.addEventListener("click", async (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) return void document.getElementById(opener.dataset.opens).showModal();
  const closer = event.target.closest("[data-closes]");
  if (closer) return void closer.closest("dialog").close();
  const copied = event.target.closest("[data-copy]");
  if (copied) return void copy(copied);
  if (event.target.closest("[data-looked]")) {
    document.cookie = `rcmae_looked=${new Date().toISOString()}; path=/; max-age=31536000; samesite=lax`;
    return void refresh();
  }
  const doer = event.target.closest("button[data-action]");
  if (doer) await act(doer);
});

async function act(doer) {
  const { action, confirm: text, yes, body, then } = doer.dataset;
  if (text && !(await confirmed(text, yes))) return;
  const [method, url] = action.split(" ");
  doer.setAttribute("aria-busy", "true");
  doer.disabled = true;
  try {
    const { answer, found } = await ask(method, url, body === undefined ? undefined : JSON.parse(body));
    await after(then, answer, found);
  } catch (error) {
    if (!error.problem) throw error;
    toast(error.problem.detail, { bad: true, id: error.problem.request_id, again: () => act(doer) });
    if (error.problem.status === 409) refresh();
  } finally {
    doer.removeAttribute("aria-busy");
    doer.disabled = false;
  }
}

async function copy(source) {
  const text = source.dataset.copy || source.parentElement.querySelector("code, input, textarea").textContent;
  const before = source.innerHTML;
  try {
    await navigator.clipboard.writeText(text);
    source.textContent = "Copied";
  } catch {
    const range = document.createRange(); // not allowed here (plain HTTP on another host): select it instead
    range.selectNodeContents(source.parentElement.querySelector("code"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    source.textContent = "Press Ctrl+C";
  }
  setTimeout(() => { source.innerHTML = before; }, 2000);
}

// Labels as one types them: name:value, one a line or with commas between.
export const labelsOf = (text) => Object.fromEntries(text.split(/[\n,]/).map((each) => each.trim()).filter(Boolean).map((each) => { const at = each.indexOf(":"); return at < 0 ? [each, ""] : [each.slice(0, at).trim(), each.slice(at + 1).trim()]; }));

// An Idempotency-Key. Browsers have no randomUUID on plain HTTP from another host.
export const newKey = () => crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;

// The JSON that a form means: `name` is a dotted path, `data-type` says how its text is read, and empty fields are left out
// unless they are `data-empty="null"` or `data-empty=""`. Of a form with `data-changed` only what was changed is sent.
// A form with `data-resets` is empty again, or as the refreshed page has it, once it was sent.
// Boxes of one name and the type `member` are a list, or null if none is ticked.
// `data-within` is a path that the field's own is below; a number in it is a place in a list.
export function valuesOf(form) {
  const found = {};
  for (const field of form.elements) {
    if (!field.name || field.disabled || field.type === "submit") continue;
    if (form.dataset.changed !== undefined && !changed(field)) continue;
    if (field.dataset.type === "member") {
      found[field.name] ??= null;
      if (field.checked) found[field.name] = [...(found[field.name] ?? []), field.value];
      continue;
    }
    let value = field.type === "checkbox" ? field.checked : field.value;
    if (value === "" && field.dataset.empty === undefined) continue;
    if (value === "") value = field.dataset.empty === "null" ? null : field.dataset.type === "labels" ? {} : field.dataset.type === "list" ? [] : "";
    else if (field.dataset.type === "number") value = Number.isNaN(Number(value)) ? value : Number(value);
    else if (field.dataset.type === "json") { try { value = JSON.parse(value); } catch { /* the server says what is wrong with it */ } }
    else if (field.dataset.type === "labels") value = labelsOf(value);
    else if (field.dataset.type === "list") value = value.split(/[\s,]+/).filter(Boolean);
    else if (field.dataset.type === "assignments") value = assignments(value);
    const path = field.dataset.flat === undefined ? field.name.split(".") : [field.name];
    const within = field.dataset.within ? field.dataset.within.split(".") : [];
    [...within, ...path].reduce((at, name, index, all) => {
      if (index < all.length - 1) return (at[name] ??= /^\d+$/.test(all[index + 1]) ? [] : {});
      return (at[name] = field.dataset.type === "assignments" ? { ...at[name], ...value } : value);
    }, found);
  }
  return found;
}

// `path=value` a line, as the command line's --set has it: a value is JSON where it can be, else text.
function assignments(text) {
  const found = {};
  for (const line of text.split("\n").map((each) => each.trim()).filter(Boolean)) {
    const at = line.indexOf("=");
    const path = (at < 0 ? line : line.slice(0, at)).trim(), value = at < 0 ? "" : line.slice(at + 1).trim();
    try { found[path] = JSON.parse(value); } catch { found[path] = value; }
  }
  return found;
}

function changed(field) {
  if (field.type === "checkbox" || field.type === "radio") return field.checked !== field.defaultChecked;
  return field.tagName === "SELECT" ? [...field.options].some((option) => option.selected !== option.defaultSelected) : field.value !== field.defaultValue;
}

const placeOf = (field) => (field.dataset.within ? `${field.dataset.within}.${field.name}` : field.name);

export function clearErrors(form) {
  for (const each of form.querySelectorAll(".field-error[data-told], .form-error[data-told]")) each.remove();
  for (const each of form.querySelectorAll("[aria-invalid]")) {
    each.removeAttribute("aria-invalid");
    if (each.dataset.described) each.setAttribute("aria-describedby", each.dataset.described);
    else each.removeAttribute("aria-describedby");
  }
}

// Say each problem at its field, and what has no field above the buttons. The first field is given the focus.
export function tell(form, told, { focus = true } = {}) {
  clearErrors(form);
  const rest = [];
  let first = null;
  for (const each of told.problems ?? []) {
    const names = [each.field, each.pointer?.slice(1).replaceAll("/", ".")].map((name) => inForm(form, name));
    const field = [...form.elements].find((element) => element.name && names.includes(placeOf(element))) ?? [...form.elements].find((element) => element.name && names.some((name) => name?.startsWith(`${placeOf(element)}.`)));
    if (!field) { rest.push(`${each.field}: ${each.message}`); continue; }
    const line = document.createElement("p");
    line.className = "field-error";
    line.dataset.told = "";
    line.id = `error-${field.id || field.name.replaceAll(".", "-")}`;
    line.textContent = each.message;
    field.setAttribute("aria-invalid", "true");
    field.dataset.described ??= field.getAttribute("aria-describedby") ?? "";
    field.setAttribute("aria-describedby", `${line.id} ${field.dataset.described}`.trim());
    (field.closest(".field") ?? field.parentElement).append(line);
    field.closest("details:not([open])")?.setAttribute("open", "");
    first ??= field;
  }
  if (rest.length || !first) {
    const box = document.createElement("p");
    box.className = "form-error";
    box.dataset.told = "";
    box.setAttribute("role", "alert");
    box.textContent = rest.join(". ") || told.detail;
    if (told.request_id) box.title = `request ${told.request_id}`;
    form.querySelector(".actions:last-of-type")?.before(box) ?? form.append(box);
  }
  if (focus) first?.focus();
}

document.addEventListener("submit", async (event) => {
  const form = event.target.closest("form[data-action]");
  if (!form) return;
  event.preventDefault();
  const [method, url] = form.dataset.action.split(" ");
  const sender = event.submitter;
  const asked = form.dataset.confirm ?? JSON.parse(form.dataset.confirms ?? "{}")[form.elements[form.dataset.confirmOf]?.value.trim()];
  if (asked && !(await confirmed(asked, form.dataset.yes))) return;
  const headers = {};
  if (form.dataset.idempotent !== undefined) headers["Idempotency-Key"] = form.dataset.key ??= newKey();
  if (sender) sender.disabled = true;
  try {
    const { answer, found } = await ask(method, url.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(form.elements[`url:${name}`].value)), method === "DELETE" ? undefined : bodyOf(form), headers);
    clearErrors(form);
    delete form.dataset.key;
    form.closest("dialog")?.close();
    if (form.dataset.shows) showOnce(form.dataset.shows, found);
    if (form.dataset.shows || form.dataset.resets !== undefined) form.reset();
    await after(form.dataset.then ?? "refresh", answer, found);
    form.dispatchEvent(new CustomEvent("rcmae:done", { detail: found, bubbles: true }));
  } catch (error) {
    if (!error.problem) throw error;
    tell(form, error.problem);
    if (error.problem.status && error.problem.status < 500) delete form.dataset.key; // refused for good: another try is another thing
  } finally {
    if (sender) sender.disabled = false;
  }
});

// Show parts of an answer that nobody gets again, in a dialog that forgets them when it is closed.
function showOnce(id, found) {
  const dialog = document.getElementById(id);
  const places = dialog.querySelectorAll("[data-shown]");
  for (const place of places) place.textContent = found[place.dataset.shown];
  dialog.addEventListener("close", () => { for (const place of places) place.textContent = ""; }, { once: true });
  dialog.showModal();
}

// The rows of a form that its lists were read from, by the name of the list: rows that were left empty were not sent.
const rowsOf = new WeakMap();

function inForm(form, name) {
  return name?.replace(/^(\w+)\.(\d+)/, (all, list, place) => (rowsOf.get(form)?.[list] ? `${list}.${rowsOf.get(form)[list][place]}` : all));
}

function bodyOf(form) {
  const found = valuesOf(form);
  for (const name of Object.keys(found)) {
    if (name.startsWith("url:")) delete found[name];
    else if (Array.isArray(found[name])) {
      rowsOf.set(form, { ...rowsOf.get(form), [name]: Object.keys(found[name]) });
      found[name] = found[name].filter(() => true); // rows that were left empty are gaps
    }
  }
  return found;
}
