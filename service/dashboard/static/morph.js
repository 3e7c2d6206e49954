// A refreshed page is morphed into the one on the screen by idiomorph, which keeps scroll, focus and selection.
// What it must leave alone: elements marked `data-keep`, which a script has drawn, and what the user has typed or opened.
function edited(node) {
  if (!/^(INPUT|TEXTAREA|SELECT)$/.test(node.tagName)) return false;
  if (node.type === "checkbox" || node.type === "radio") return node.checked !== node.defaultChecked;
  if (node.tagName === "SELECT") return [...node.options].some((option) => option.selected !== option.defaultSelected);
  return node === document.activeElement || node.value !== node.defaultValue;
}

const callbacks = {
  beforeNodeMorphed: (node) => !(node.nodeType === 1 && (node.hasAttribute("data-keep") || edited(node) || node.matches("dialog[open]"))),
  beforeAttributeUpdated: (name, element) => !(name === "open" && element.matches("details, dialog")),
};

htmx.defineExtension("morph", {
  isInlineSwap: (style) => style === "morph",
  handleSwap: (style, target, fragment) => {
    if (style !== "morph") return false;
    const fresh = fragment.firstElementChild;
    if (fresh) Idiomorph.morph(target, fresh, { callbacks });
    return [target];
  },
});
