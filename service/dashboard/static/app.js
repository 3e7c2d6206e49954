// What every page does. Each module finds its own elements, now and after every refresh.
import "./morph.js";
import { onRefresh } from "./live.js";
import "./actions.js";
import { tick } from "./times.js";

const needed = [
  ["[data-plot], [data-curves]", () => import("./charts.js")],
  ["[data-log]", () => import("./logs.js")],
  ["[data-select], [data-columns]", () => import("./tables.js")],
  ["[data-pictures]", () => import("./pictures.js")],
  ["[data-spec-form]", () => import("./forms.js")],
];

async function mount() {
  tick();
  for (const each of document.querySelectorAll(".scroll")) if (each.scrollWidth > each.clientWidth) each.tabIndex = 0; // by keyboard too
  for (const [selector, load] of needed) {
    const found = [...document.querySelectorAll(selector)];
    if (found.length) (await load()).mount(found);
  }
}

onRefresh(mount);
mount().then(() => performance.mark("rcmae:ready")); // what the benchmark of open pages reads
