// Starting work: a form and YAML as two views of one spec, with its plan beside it.
//
// The server turns one view into the other (`/forms`); plans and submissions go to the REST API. What somebody has
// written stays over a reload, in this tab.
import { ask, clearErrors, labelsOf, newKey, tell, toast } from "./actions.js";
import { sessionEnded } from "./live.js";
import { number } from "./times.js";

const PAUSE_MS = 700;
const done = new WeakSet();

export function mount(found) {
  for (const root of found) if (!done.has(root)) { done.add(root); new SpecForm(root).begin(); }
}

class SpecForm {
  constructor(root) {
    this.root = root;
    this.kind = root.dataset.specForm;
    this.form = root.querySelector("form");
    this.text = root.querySelector("#yaml");
    this.place = root.querySelector("#view-form");
    this.plan = root.querySelector("[data-plan]");
    this.problems = root.querySelector("#yaml-problems");
    this.view = "form";
    this.key = null;
    this.asked = 0;
    this.draft = `rcmae-draft:${location.pathname}${location.search}`;
  }

  async begin() {
    this.root.addEventListener("input", () => this.changed());
    this.root.addEventListener("change", ({ target }) => target.matches("[data-shape]") && shapes(this.place));
    this.root.addEventListener("click", (event) => this.clicked(event));
    this.root.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = this.root.querySelector(`[role=tab][data-view=${this.view === "form" ? "yaml" : "form"}]`);
      this.show(other.dataset.view).then(() => this.root.querySelector("[role=tab][aria-selected=true]").focus());
    });
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    await this.restore();
    this.named();
    this.work();
  }

  clicked({ target }) {
    const tab = target.closest("[role=tab]");
    if (tab && tab.dataset.view !== this.view) this.show(tab.dataset.view);
    if (target.closest("[data-start]")) this.submit();
    if (target.closest("[data-inspect]")) this.inspect();
    const add = target.closest("[data-add]")?.dataset.add;
    if (add === "parameter") this.add(this.place.querySelector("[data-space]"), this.place.querySelector("[data-template=parameter]").content.cloneNode(true));
    if (add === "objective") this.add(this.place.querySelector("[data-objectives]"), this.place.querySelector("[data-objective]").cloneNode(true));
    const gone = target.closest("[data-remove]")?.closest("[data-parameter], [data-objective]");
    if (gone && (gone.matches("[data-parameter]") || this.place.querySelectorAll("[data-objective]").length > 1)) { gone.remove(); this.named(); this.changed(); }
    if (target.closest("[data-start-over]")) this.over();
  }

  add(place, made) {
    place.append(made);
    this.named();
    place.lastElementChild.querySelector("input, select").focus();
    this.changed();
  }

  // Names by which problems find their fields.
  named() {
    const objectives = [...this.place.querySelectorAll("[data-objective]")];
    objectives.forEach((row, index) => { for (const part of row.querySelectorAll("[data-part]")) part.name = `objective.${objectives.length > 1 ? `${index}.` : ""}${part.dataset.part}`; });
    [...this.place.querySelectorAll("[data-parameter]")].forEach((row, index) => {
      row.querySelector("legend").textContent = `Parameter ${index + 1}`;
      const path = row.querySelector("[data-part=path]").value.trim();
      for (const part of row.querySelectorAll("[data-part]")) part.name = part.dataset.part === "path" ? `space.${path}` : `space.${path}.${part.dataset.part}`;
    });
    [...this.place.querySelectorAll("[data-protocol]:checked")].forEach(({ value }, index) => { for (const part of settings(this.place, value)) part.name = `protocols.${index}.${part.dataset.part}`; });
    shapes(this.place);
  }

  changed() {
    if (this.view === "form") this.named();
    this.key = null; // another spec is another submission
    clearTimeout(this.later);
    this.later = setTimeout(() => this.work(), PAUSE_MS);
    this.keep();
  }

  // --- the document --------------------------------------------------------------------------------------------------
  fromForm() {
    const found = { kind: this.kind };
    for (const field of this.place.querySelectorAll("[name][data-type]:not([data-part])")) {
      if (field.closest("[data-for][hidden]")) continue;
      const value = read(field.value.trim(), field.dataset.type);
      if (value !== undefined) set(found, field.name.split("."), value);
    }
    if (this.kind === "evaluate") return { ...found, protocols: this.protocols(), baselines: [...this.place.querySelectorAll("[data-baseline]:checked")].map((box) => box.value) };
    if (this.kind !== "search") return found;
    const objectives = [...this.place.querySelectorAll("[data-objective]")].map((row) => Object.fromEntries([...row.querySelectorAll("[data-part]")].filter((part) => part.value).map((part) => [part.dataset.part, part.value])));
    found.objective = objectives.length > 1 ? objectives : objectives[0];
    found.space = {};
    for (const row of this.place.querySelectorAll("[data-parameter]")) {
      const part = (name) => row.querySelector(`[data-part=${name}]`);
      const path = part("path").value.trim(), type = part("type").value;
      const made = { type };
      if (type === "categorical") made.choices = listed(part("choices").value);
      else {
        for (const name of ["low", "high", "step"]) { const value = read(part(name).value.trim(), "value"); if (value !== undefined) made[name] = value; }
        if (part("log").checked) made.log = true;
      }
      if (part("when").value.trim()) made.when = Object.fromEntries(part("when").value.split(";").map((each) => each.trim()).filter(Boolean).map((each) => { const at = each.indexOf("="); return at < 0 ? [each, null] : [each.slice(0, at).trim(), read(each.slice(at + 1).trim(), "value") ?? ""]; }));
      found.space[path] = made;
    }
    return found;
  }

  // The ways to measure that are ticked, each with its settings.
  protocols() {
    return [...this.place.querySelectorAll("[data-protocol]:checked")].map(({ value: name }) => {
      const made = { name };
      for (const part of settings(this.place, name)) { const value = read(part.value.trim(), part.dataset.type); if (value !== undefined) made[part.dataset.part] = value; }
      return made;
    });
  }

  // Of two parameters with one path the document could have one alone.
  mustDiffer() {
    const paths = [...this.place.querySelectorAll("[data-parameter] [data-part=path]")].map((part) => part.value.trim());
    const twice = paths.find((path, index) => paths.indexOf(path) < index);
    if (twice === undefined) return;
    const message = `${twice || "an empty path"} is there twice: change or remove one of them`;
    throw Object.assign(new Error(message), { problem: { detail: message, status: 422, problems: [{ field: `space.${twice}`, message }] } });
  }

  // What is meant now, in whichever view; null where the text is no document, which is told.
  async document() {
    if (this.view === "form") {
      this.mustDiffer();
      return { document: this.fromForm(), lines: {} };
    }
    const { found } = await ask("POST", "/forms/document", { kind: this.kind, text: this.text.value });
    return found;
  }

  async show(view) {
    const before = this.view;
    try {
      if (view === "yaml") this.text.value = (await ask("POST", "/forms/yaml", { document: (await this.document()).document })).found.text;
      else this.fill((await ask("POST", "/forms/form", { kind: this.kind, text: this.text.value })).found.html);
    } catch (error) {
      if (!error.problem) throw error;
      if (before === "yaml") return this.told(error.problem, {}); // it stays where it can be mended
      return toast(error.problem.detail, { bad: true, id: error.problem.request_id });
    }
    this.view = view;
    for (const tab of this.root.querySelectorAll("[role=tab]")) {
      const on = tab.dataset.view === view;
      tab.setAttribute("aria-selected", String(on));
      tab.tabIndex = on ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = !on;
    }
    this.problems.replaceChildren();
    this.keep();
    return this.work();
  }

  fill(html) {
    this.place.innerHTML = html; // the server's own, with every value escaped
    this.named();
  }

  // --- the plan ------------------------------------------------------------------------------------------------------
  async work() {
    const asked = (this.asked += 1);
    try {
      const { document: meant, lines } = await this.document();
      try {
        const { found } = await ask("POST", "/v1/jobs/plan", meant);
        if (asked !== this.asked) return;
        clearErrors(this.form);
        this.problems.replaceChildren();
        this.planned(found);
      } catch (error) {
        if (asked !== this.asked) return;
        if (!error.problem) throw error;
        this.told(error.problem, lines, { focus: false });
      }
    } catch (error) {
      if (asked !== this.asked) return;
      if (!error.problem) throw error;
      this.told(error.problem, {}, { focus: false });
    }
  }

  planned(found) {
    const looks = { now: ["running", "starts now"], later: ["waiting", "waits first"], never: ["failed", "does not fit"] };
    const [look, text] = looks[found.fits];
    const badge = Object.assign(document.createElement("p"), { innerHTML: `<span class="badge ${look}">${text}</span>` });
    const why = Object.assign(document.createElement("p"), { textContent: found.message });
    const list = Object.assign(document.createElement("dl"), { className: "fields" });
    const rows = [
      ["needs", `${found.gang.cpus} CPU${found.gang.cpus === 1 ? "" : "s"}${found.gang.gpus ? `, ${found.gang.gpus} GPU${found.gang.gpus === 1 ? "" : "s"}` : ""}`],
      ["memory a worker", `${number(Number((found.memory_per_worker_bytes / 2 ** 20).toPrecision(3)))} MiB, estimated`],
    ];
    if (found.parameters) rows.push(["parameters", `${short(found.parameters.encoder)} encoder${this.kind !== "evaluate" ? `, ${short(found.parameters.decoder)} decoder` : ""}`]);
    if (found.steps) rows.push(["images", `${found.steps.train_images}, and ${found.steps.held_out_images} held out`], ["steps", `${found.steps.steps} (${found.steps.steps_per_epoch} an epoch)${this.kind === "search" ? " in each trial" : ""}`]);
    else if (this.kind !== "evaluate") rows.push(["steps", "known when the dataset has been read once"]);
    if (found.points !== null) rows.push(["points of the space", String(found.points)]);
    for (const [name, value] of rows) list.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: value }));
    const warnings = found.warnings.map((each) => Object.assign(document.createElement("p"), { className: "message warned", textContent: each.message }));
    this.plan.replaceChildren(badge, why, list, ...warnings);
    this.defaults(found.spec);
  }

  // What an empty field will be, as the preset and the cluster settle it.
  defaults(spec) {
    for (const field of this.place.querySelectorAll("input[name][data-type]:not([data-part])")) {
      const value = field.name.split(".").reduce((at, name) => at?.[name], spec);
      if (value !== undefined && value !== null) field.placeholder = typeof value === "object" ? JSON.stringify(value) : String(value);
    }
  }

  told(problem, lines, how) {
    const line = Object.assign(document.createElement("p"), { className: "form-error", textContent: problem.problems?.length > 1 ? `${problem.problems.length} fields are not right yet.` : problem.detail });
    this.plan.replaceChildren(line);
    if (this.view === "form") return tell(this.form, problem, how);
    const all = problem.problems?.length ? problem.problems : [{ field: "", message: problem.detail }];
    this.problems.replaceChildren(...all.map((each) => Object.assign(document.createElement("li"), { textContent: `${lines[each.field] ? `line ${lines[each.field]}: ` : ""}${each.field ? `${each.field}: ` : ""}` })));
    [...this.problems.children].forEach((line, index) => line.append(Object.assign(document.createElement("bdi"), { textContent: all[index].message })));
    this.text.setAttribute("aria-invalid", "true");
    if (how?.focus !== false) this.text.focus();
    return undefined;
  }

  // --- submitting ----------------------------------------------------------------------------------------------------
  async submit() {
    if (this.busy) return;
    this.busy = true;
    for (const button of this.root.querySelectorAll("[data-start], [type=submit]")) button.disabled = true;
    this.text.removeAttribute("aria-invalid");
    let lines = {};
    try {
      const meant = await this.document();
      lines = meant.lines;
      this.key ??= newKey();
      const { found } = await ask("POST", "/v1/jobs", meant.document, { "Idempotency-Key": this.key });
      sessionStorage.removeItem(this.draft);
      location.assign(`/${this.kind === "search" ? "searches" : "jobs"}/${found.id}/overview`);
    } catch (error) {
      this.busy = false;
      for (const button of this.root.querySelectorAll("[data-start], [type=submit]")) button.disabled = false;
      if (!error.problem) throw error;
      if (error.problem.status === 422) this.told(error.problem, lines);
      else if (!sessionEnded(error.problem.status)) toast(error.problem.detail, { bad: true, id: error.problem.request_id, again: () => this.submit() });
    }
  }

  // A job that says what the dataset holds; the draft stays for when somebody comes back.
  async inspect() {
    const { document: meant } = await this.document();
    const dataset = (this.kind === "search" ? meant.base : meant)?.dataset ?? {};
    try {
      const { found } = await ask("POST", "/v1/jobs", { kind: "inspect", dataset });
      this.keep();
      location.assign(`/jobs/${found.id}/overview`);
    } catch (error) {
      if (!error.problem) throw error;
      const problem = this.kind === "search" && error.problem.problems ? { ...error.problem, problems: error.problem.problems.map((each) => ({ ...each, field: `base.${each.field}` })) } : error.problem;
      if (problem.status === 422) this.told(problem, {});
      else if (!sessionEnded(problem.status)) toast(problem.detail, { bad: true, id: problem.request_id });
    }
  }

  // --- the draft -----------------------------------------------------------------------------------------------------
  keep() {
    const what = this.view === "yaml" ? { view: "yaml", text: this.text.value } : { view: "form", document: this.fromForm() };
    sessionStorage.setItem(this.draft, JSON.stringify(what));
  }

  async restore() {
    const kept = JSON.parse(sessionStorage.getItem(this.draft) ?? "null");
    if (!kept) return;
    try {
      this.text.value = kept.view === "yaml" ? kept.text : (await ask("POST", "/forms/yaml", { document: kept.document })).found.text;
      if (kept.view === "form") this.fill((await ask("POST", "/forms/form", { kind: this.kind, text: this.text.value })).found.html);
      else {
        this.view = "yaml";
        for (const tab of this.root.querySelectorAll("[role=tab]")) { const on = tab.dataset.view === "yaml"; tab.setAttribute("aria-selected", String(on)); tab.tabIndex = on ? 0 : -1; document.getElementById(tab.getAttribute("aria-controls")).hidden = !on; }
      }
      this.root.querySelector("[data-draft]").hidden = false;
    } catch (error) {
      if (!error.problem) throw error;
      toast(`Your draft could not be restored: ${error.problem.detail}`, { bad: true });
    }
  }

  over() {
    sessionStorage.removeItem(this.draft);
    location.reload();
  }
}

const short = (count) => (count >= 1e6 ? `${number(Number((count / 1e6).toPrecision(3)))} M` : `${number(Number((count / 1e3).toPrecision(3)))} k`);

const settings = (place, protocol) => place.querySelectorAll(`[data-settings="${protocol}"] [data-part]`);

// Only the parts that a parameter of its type has, or a network of its origin.
function shapes(place) {
  for (const shape of place.querySelectorAll("select[data-shape]")) {
    for (const part of shape.closest("fieldset").querySelectorAll("[data-for]")) part.hidden = !part.dataset.for.split(" ").includes(shape.value);
  }
}

function read(text, type) {
  if (text === "") return undefined;
  if (type === "text") return text;
  if (type === "labels") return labelsOf(text);
  try { return JSON.parse(text); } catch { return Number.isFinite(Number(text)) ? Number(text) : text; }
}

function listed(text) {
  const whole = text.trim();
  if (whole.startsWith("[")) { try { return JSON.parse(whole); } catch { /* as a list without brackets, which says what is wrong */ } }
  return whole === "" ? [] : whole.split(",").map((each) => read(each.trim(), "value") ?? "");
}

function set(document_, path, value) {
  path.reduce((at, name, index) => (index === path.length - 1 ? (at[name] = value) : (at[name] ??= {})), document_);
}
