// Relative times go on by themselves; the absolute one stays in the title.
const UNITS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];

export function ago(moment) {
  const seconds = (Date.now() - Date.parse(moment)) / 1000;
  const [length, unit] = UNITS.find(([each]) => Math.abs(seconds) >= each) ?? UNITS.at(-1);
  const text = `${Math.floor(Math.abs(seconds) / length)} ${unit}`;
  return seconds >= 0 ? `${text} ago` : `in ${text}`;
}

export function duration(seconds) {
  let left = Math.max(0, Math.round(seconds));
  for (const [unit, smaller, length, part] of [["d", "h", 86400, 3600], ["h", "m", 3600, 60], ["m", "s", 60, 1]]) {
    if (left >= length) return `${Math.floor(left / length)} ${unit} ${String(Math.floor((left % length) / part)).padStart(2, "0")} ${smaller}`;
  }
  return `${left} s`;
}

// Six significant digits, as the server writes them.
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (value !== 0 && (size < 1e-4 || size >= 1e6)) return value.toExponential(5).replace(/\.?0+e/, "e");
  return String(Number(value.toPrecision(6)));
}

export function tick() {
  for (const each of document.querySelectorAll("time[datetime]")) {
    const text = ago(each.dateTime);
    if (each.textContent !== text) each.textContent = text;
  }
}

setInterval(tick, 5000);
