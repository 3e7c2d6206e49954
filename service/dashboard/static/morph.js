// Change a page into a newer one of itself, in place: what is the same stays, with its scroll, focus and selection.
//
// Elements are matched by `id`, else by place and tag. `data-keep` marks what a script has drawn: it is left as it is.
// What somebody is typing or has opened stays too.
function same(a, b) {
  return a.nodeType === b.nodeType && (a.nodeType !== 1 || (a.tagName === b.tagName && a.id === b.id));
}

function attributes(old, fresh) {
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && /^(DETAILS|DIALOG)$/.test(old.tagName))) old.removeAttribute(name);
  }
}

function typed(node) {
  if (!/^(INPUT|TEXTAREA|SELECT)$/.test(node.tagName)) return false;
  if (node.type === "checkbox" || node.type === "radio") return node.checked !== node.defaultChecked;
  if (node.tagName === "SELECT") return [...node.options].some((option) => option.selected !== option.defaultSelected);
  return node === document.activeElement || node.value !== node.defaultValue;
}

export function morph(old, fresh) {
  if (old.nodeType !== 1) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.isEqualNode(fresh) || old.hasAttribute("data-keep") || typed(old)) return;
  if (old.tagName === "DIALOG" && old.open) return;
  attributes(old, fresh);
  const byId = new Map([...old.children].filter((child) => child.id).map((child) => [child.id, child]));
  let here = old.firstChild;
  for (const wanted of [...fresh.childNodes]) {
    let match = wanted.id ? byId.get(wanted.id) : null;
    if (match && !same(match, wanted)) match = null;
    if (!match && here && !here.id && !wanted.id && same(here, wanted)) match = here;
    if (!match) {
      old.insertBefore(document.importNode(wanted, true), here);
      continue;
    }
    if (match === here) here = here.nextSibling;
    else old.insertBefore(match, here);
    morph(match, wanted);
  }
  while (here) {
    const next = here.nextSibling;
    here.remove();
    here = next;
  }
}

htmx.defineExtension("morph", {
  isInlineSwap: (style) => style === "morph",
  handleSwap: (style, target, fragment) => {
    if (style !== "morph") return false;
    const fresh = fragment.firstElementChild;
    if (fresh) morph(target, fresh);
    return [target];
  },
});
