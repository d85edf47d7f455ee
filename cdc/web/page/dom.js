// Makes and changes elements. Data becomes text and attributes, never markup: event fields come from logs, slot names
// from any user of the server. The page's policy (require-trusted-types-for) makes the browser refuse anything else.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  set(node, attributes);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// null removes an attribute. An unchanged value is not written again, so selections and screen readers stay calm.
export function set(node, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === false) node.removeAttribute(name);
    else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
  }
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A shape and its class: ok, warn, bad or idle. The word that goes with it is the caller's.
export function shape(state) {
  return svg("svg", { class: `icon ${state}`, "aria-hidden": "true", focusable: "false" }, svg("use", { href: `#shape-${state}` }));
}

// One child per item, kept while its key lasts: focus, selection and scroll position survive the next answer.
export function reconcile(parent, items, keyOf, create, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    const node = old.get(key) ?? create(item);
    node.dataset.key = key;
    old.delete(key);
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const node of old.values()) node.remove();
}

// Pairs of a term and its description, which may be text or a node.
export function define(list, pairs) {
  reconcile(
    list,
    pairs.filter(([, value]) => value !== null && value !== undefined),
    ([term]) => term,
    ([term]) => el("div", {}, el("dt", {}, term), el("dd")),
    (node, [, value]) => {
      if (value instanceof Node) node.lastChild.replaceChildren(value);
      else say(node.lastChild, value);
    },
  );
}
