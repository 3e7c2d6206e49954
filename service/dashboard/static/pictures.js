// A slider through the pictures of a run, or of several at once. The newest is shown until somebody has moved it.
const state = new WeakMap();

export function mount(found) {
  for (const root of found) {
    const range = root.querySelector("input[type=range]");
    const runs = [...root.querySelectorAll("[data-run]")].map((figure) => ({ figure, all: JSON.parse(figure.dataset.run) }));
    const steps = [...new Set(runs.flatMap(({ all }) => all.map(([step]) => step)))].sort((a, b) => a - b);
    let mine = state.get(root);
    if (!mine) {
      mine = { moved: false };
      state.set(root, mine);
      range.addEventListener("input", () => { mine.moved = Number(range.value) < Number(range.max); mine.show(); });
    }
    range.max = Math.max(0, steps.length - 1);
    range.disabled = steps.length < 2;
    if (!mine.moved) range.value = range.max;
    mine.show = () => show(root, runs, steps, Number(range.value));
    mine.show();
    for (const { all } of runs) for (const [, url] of all.slice(-8)) new Image().src = url; // so that moving does not flicker
  }
}

// Of each run the picture of the step, or the last one before it.
function show(root, runs, steps, place) {
  const step = steps[place];
  root.querySelector("output").textContent = step === undefined ? "" : `${place + 1} of ${steps.length}`;
  for (const { figure, all } of runs) {
    const found = all.filter(([at]) => at <= step).at(-1) ?? all[0];
    const img = figure.querySelector("img");
    if (!found || !img) continue;
    if (img.getAttribute("src") !== found[1]) img.src = found[1];
    img.alt = img.alt.replace(/(epoch [^ ]+, )?step \d+$/, found[2]);
    figure.querySelector("a").href = found[1];
    figure.querySelector("[data-caption]").textContent = found[2];
  }
}
