// Figures. `data-plot` is one of the API's own (plotly's JSON); `data-curves` draws metric curves of one or more runs.
// A refresh keeps zoom and what is hidden (`uirevision`); colours come from the stylesheet.
import { onEvent } from "./live.js";
import { number } from "./times.js";

const SOONEST_MS = 4000;
const ROWS = 500; // of the table beside a figure
const COLOURS = ["#3b7ddd", "#d9822b", "#2f9e5f", "#c5408f", "#7a5bd6", "#129aa8", "#b8860b", "#d1495b"];
const state = new WeakMap(); // figure -> {drawn at, timer, running, redraw}
let loading = null;

function plotly() {
  loading ??= new Promise((settle, fail) => {
    const script = document.createElement("script");
    script.src = new URL("./plotly.min.js", import.meta.url);
    script.onload = () => settle(window.Plotly);
    script.onerror = () => { loading = null; fail(new Error("plotly.js could not be loaded")); };
    document.head.append(script);
  });
  return loading;
}

const css = (name) => {
  const probe = document.createElement("span"); // resolves light-dark() to what holds now
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
};

function themed(layout, height) {
  const axis = { gridcolor: css("line"), zerolinecolor: css("line"), linecolor: css("line"), automargin: true };
  const made = {
    ...layout, height, autosize: true, uirevision: "kept", paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", template: undefined,
    title: undefined, margin: { l: 48, r: 14, t: 14, b: 40, ...layout.margin }, font: { color: css("text"), family: "inherit", size: 12 },
    hoverlabel: { bgcolor: css("raised"), bordercolor: css("line"), font: { color: css("text") } }, legend: { orientation: "h", y: -0.25, ...layout.legend },
  };
  for (const name of Object.keys({ xaxis: 0, yaxis: 0, ...layout })) if (/^[xy]axis\d*$/.test(name)) made[name] = { ...axis, ...layout[name] };
  return made;
}

const OPTIONS = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], locale: "en" };

async function draw(figure, data, layout, note) {
  const Plotly = await plotly();
  const canvas = figure.querySelector(".canvas");
  const line = figure.querySelector(".note");
  line.hidden = !note;
  line.textContent = note ?? "";
  canvas.classList.remove("skeleton");
  canvas.hidden = data.length === 0;
  if (data.length) await Plotly.react(canvas, data, themed(layout, Number(figure.dataset.height) || 320), OPTIONS);
  const table = figure.querySelector(".as-table");
  table.hidden = data.length === 0;
  const fill = () => { if (table.open) tabulate(table.querySelector(".scroll"), data, layout); };
  table.ontoggle = fill;
  fill();
}

function tabulate(place, data, layout) {
  const head = ["Series", layout.xaxis?.title?.text || "x", layout.yaxis?.title?.text || "value"];
  const rows = [];
  for (const trace of data) {
    const xs = trace.x ?? trace.dimensions?.map((each) => each.label) ?? [];
    const ys = trace.y ?? trace.dimensions?.map((each) => (each.values ?? []).map(number).slice(0, 12).join(", ")) ?? [];
    for (let index = 0; index < Math.min(xs.length, ys.length) && rows.length < ROWS; index++) rows.push([trace.name ?? "", xs[index], Array.isArray(ys[index]) ? ys[index].map(number).join(", ") : ys[index]]);
  }
  const table = document.createElement("table");
  table.append(Object.assign(document.createElement("caption"), { textContent: rows.length < ROWS ? "Values of the chart" : `The first ${ROWS} points` }));
  const line = (cells, kind) => { const row = document.createElement("tr"); for (const each of cells) { const cell = document.createElement(kind); if (kind === "th") cell.scope = "col"; cell.textContent = typeof each === "number" ? number(each) : each; if (typeof each === "number") cell.className = "num"; row.append(cell); } return row; };
  const top = table.createTHead();
  top.append(line(head, "th"));
  table.createTBody().append(...rows.map((row) => line(row, "td")));
  place.replaceChildren(table);
  place.tabIndex = 0; // what scrolls can be scrolled by keyboard
}

async function get(url) {
  if (url.startsWith("#")) return JSON.parse(document.getElementById(url.slice(1)).dataset.figure); // the page has it already
  const answer = await fetch(url);
  if (!answer.ok) throw Object.assign(new Error(), { problem: await answer.json().catch(() => ({ detail: `the service answered ${answer.status}` })) });
  return answer.json();
}

function failed(root, error) {
  for (const figure of root.matches("figure") ? [root] : root.querySelectorAll("figure")) {
    figure.querySelector(".canvas").classList.remove("skeleton");
    const note = figure.querySelector(".note");
    note.hidden = false;
    note.textContent = `Could not be loaded: ${error.problem?.detail ?? error.message}`;
  }
}

// --- figures of the API ----------------------------------------------------------------------------------------------
async function plot(figure) {
  const found = await get(figure.dataset.plot);
  const layout = found.layout ?? {};
  await draw(figure, found.data, { ...layout, showlegend: found.data.length > 1 && found.data.length < 12 && layout.showlegend !== false }, found.note);
  if (figure.dataset.leads && found.data.length && !figure.dataset.bound) {
    figure.dataset.bound = "1";
    figure.querySelector(".canvas").on("plotly_click", ({ points: [point] }) => { // a point of a trial, or a trace that is one
      const trial = [point.customdata].flat()[0] ?? /^trial (\d+)$/.exec(point.data.name)?.[1];
      if (Number.isInteger(Number(trial ?? NaN))) location.assign(figure.dataset.leads.replace("{n}", trial));
    });
  }
}

// --- curves ----------------------------------------------------------------------------------------------------------
// <div data-curves='[{"id","label","url","colour"?}]' data-charts='[{"title","keys":[…],"names"?:[…],"log"?}]'> with figures made here;
// `data-axes` names what they can be drawn by, if that is not everything.
// What the axes show lives in the address: ?x=step|epoch|samples|time&smooth=0…0.99
const X = { step: "optimiser step", epoch: "epoch", samples: "samples", time: "hours since the first point" };

const axesOf = (root) => root.dataset.axes?.split(" ") ?? Object.keys(X);

function chosen(root) {
  const query = new URLSearchParams(location.search);
  return { x: axesOf(root).includes(query.get("x")) ? query.get("x") : "step", smooth: Math.min(0.99, Math.max(0, Number(query.get("smooth")) || 0)) };
}

function choose(root, name, value, plain) {
  const url = new URL(location.href);
  if (value === plain) url.searchParams.delete(name); else url.searchParams.set(name, value);
  history.replaceState(null, "", url);
  redraw(root);
}

function controls(root) {
  const row = document.createElement("div");
  row.className = "filters";
  const now = chosen(root);
  const axis = document.createElement("select");
  for (const name of axesOf(root)) axis.append(new Option(X[name].replace("hours since the first point", "time"), name, false, name === now.x));
  axis.addEventListener("change", () => choose(root, "x", axis.value, "step"));
  const range = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 0.99, step: 0.01 });
  range.value = now.smooth;
  range.addEventListener("input", () => choose(root, "smooth", range.value, "0"));
  for (const [text, field] of [["By", axis], ["Smoothing", range]]) {
    const label = document.createElement("label");
    label.append(`${text} `, field);
    row.append(label);
  }
  root.prepend(row);
}

// Exponential moving average, corrected for its start, as TensorBoard draws it.
function smoothed(values, weight) {
  if (!weight) return values;
  let sum = 0, norm = 0;
  return values.map((value) => { sum = sum * weight + (1 - weight) * value; norm = norm * weight + (1 - weight); return sum / norm; });
}

function placed(points, by, series) {
  if (by === "step") return points.map((point) => point.step);
  if (by === "time") { const start = Math.min(...Object.values(series).filter((each) => each.length).map((each) => Date.parse(each[0].time))); return points.map((point) => (Date.parse(point.time) - start) / 3.6e6); }
  const known = series[`progress/${by}`] ?? [];
  if (!known.length) return null;
  let index = 0;
  return points.map(({ step }) => {
    while (index < known.length - 1 && known[index + 1].step <= step) index += 1;
    const a = known[index], b = known[Math.min(index + 1, known.length - 1)];
    return a.step === b.step || step <= a.step ? a.value : a.value + ((b.value - a.value) * (step - a.step)) / (b.step - a.step);
  });
}

function traces(root, chart) {
  const { x, smooth } = chosen(root);
  const runs = state.get(root).runs;
  const found = [];
  let missing = false;
  runs.forEach((run, number_) => chart.keys.forEach((key, index) => {
    const points = run.series?.[key] ?? [];
    if (!points.length) return;
    const xs = placed(points, x, run.series);
    if (xs === null) { missing = true; return; }
    const colour = run.colour && chart.keys.length === 1 ? run.colour : runs.length > 1 ? run.colour ?? COLOURS[number_ % COLOURS.length] : COLOURS[index % COLOURS.length];
    const name = runs.length > 1 ? (chart.keys.length > 1 ? `${run.label} · ${key.split("/").pop()}` : run.label) : chart.names?.[index] ?? key.split("/").pop().replaceAll("_", " ");
    const values = points.map((point) => point.value);
    const line = { color: colour, width: 2, dash: runs.length > 1 && index ? ["dot", "dash", "dashdot"][(index - 1) % 3] : "solid" };
    const few = points.length < 40 ? "lines+markers" : "lines";
    if (smooth) found.push({ x: xs, y: values, mode: "lines", line: { color: colour, width: 1 }, opacity: 0.25, hoverinfo: "skip", showlegend: false, name });
    found.push({ x: xs, y: smoothed(values, smooth), mode: few, line, marker: { size: 5 }, name, hovertemplate: `%{y:.6g}<extra>${name.replaceAll("<", "&lt;")}</extra>` });
  }));
  return { found, missing, x };
}

async function redraw(root) {
  const charts = JSON.parse(root.dataset.charts);
  for (const [index, chart] of charts.entries()) {
    const figure = root.querySelectorAll("figure")[index];
    const { found, missing, x } = traces(root, chart);
    const ended = root.dataset.ended !== undefined;
    const note = found.length ? null : missing ? `not known by ${X[x]}` : ended ? "It ended without any." : "None yet.";
    await draw(figure, found, {
      xaxis: { title: { text: X[x] } }, yaxis: { title: { text: chart.unit ?? "" }, type: chart.log ? "log" : "linear" }, legend: { y: found.length > 3 ? -0.4 : -0.25 }, hovermode: "x unified", showlegend: found.filter((each) => each.showlegend !== false).length > 1,
    }, note);
  }
}

async function curves(root) {
  const charts = JSON.parse(root.dataset.charts);
  const keys = [...new Set([...charts.flatMap((chart) => chart.keys), "progress/epoch", "progress/samples"])];
  const asked = keys.map((key) => `key=${encodeURIComponent(key)}`).join("&");
  const runs = JSON.parse(root.dataset.curves);
  state.get(root).runs = await Promise.all(runs.map(async (run) => ({ ...run, series: (await get(`${run.url}?points=1000&${asked}`)).series })));
  await redraw(root);
}

function build(root) {
  controls(root);
  const grid = document.createElement("div");
  grid.className = "charts";
  for (const chart of JSON.parse(root.dataset.charts)) {
    const figure = document.createElement("figure");
    figure.className = "chart";
    figure.innerHTML = '<figcaption></figcaption><div class="canvas skeleton" role="group"></div><p class="note quiet" hidden></p><details class="as-table"><summary>As a table</summary><div class="scroll"></div></details>';
    figure.querySelector("figcaption").textContent = chart.title;
    figure.querySelector(".canvas").setAttribute("aria-label", chart.title);
    grid.append(figure);
  }
  root.append(grid);
}

// --- both ------------------------------------------------------------------------------------------------------------
function refreshed(root) {
  const mine = state.get(root);
  if (mine.running || mine.timer) return;
  mine.timer = setTimeout(async () => {
    mine.timer = null;
    mine.running = true;
    try {
      await (root.dataset.plot ? plot(root) : curves(root));
    } catch (error) {
      failed(root, error);
    } finally {
      mine.at = Date.now();
      mine.running = false;
    }
  }, Math.max(0, SOONEST_MS - (Date.now() - mine.at)));
}

// Only what is looked at is drawn; the rest when it comes into view.
const seen = new IntersectionObserver((entries) => { for (const { target, isIntersecting } of entries) { state.get(target).visible = isIntersecting; if (isIntersecting && state.get(target).stale) { state.get(target).stale = false; refreshed(target); } } }, { rootMargin: "300px" });

export function mount(found) {
  for (const root of found) {
    const goesOn = root.dataset.ended === undefined;
    const source = `${root.dataset.plot ?? root.dataset.curves} ${goesOn}`; // what came last is drawn when it ends, too
    if (!state.has(root)) {
      state.set(root, { at: 0, stale: true, visible: false, runs: [] });
      if (root.dataset.curves) build(root);
      seen.observe(root);
    } else if (state.get(root).source !== source || goesOn) {
      if (state.get(root).visible) refreshed(root); else state.get(root).stale = true;
    }
    state.get(root).source = source;
  }
}

onEvent("metrics", () => mount([...document.querySelectorAll("[data-curves]")]));
document.addEventListener("rcmae:theme", () => { for (const root of document.querySelectorAll("[data-plot], [data-curves]")) if (state.has(root)) { state.get(root).at = 0; root.dataset.plot ? refreshed(root) : redraw(root); } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new CustomEvent("rcmae:theme")));
