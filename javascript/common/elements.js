/*
 * Building and changing elements.
 */
const SVG = "http://www.w3.org/2000/svg";

/**
 * An element: attributes (class, on..., aria-..., dataset, style as objects), then children:
 * elements, texts, or nothing.
 */
export function el(tag, attributes, ...children) {
    return build(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
    return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
        if (value === undefined || value === null || value === false) continue;
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (name === "dataset" || name === "style") Object.assign(element[name], value);
        else if (name === "value" || name === "checked" || name === "indeterminate")
            element[name] = value;
        else element.setAttribute(name, value === true ? "" : value);
    }
    fill(element, ...children);
    return element;
}

/** Replace what is in an element. */
export function fill(element, ...children) {
    element.replaceChildren(
        ...children
            .flat(Infinity)
            .filter((child) => child !== null && child !== undefined && child !== false),
    );
    return element;
}

let serial = 0;

export const uniqueId = (name) => "lora_trainer_" + name + "_" + (serial += 1);

/**
 * Change a text only if it is another one: the host looks at the whole page after every change of
 * its elements.
 */
export function put(element, text) {
    if (element.textContent !== text) element.textContent = text;
}

/** Draw again only when what it is drawn from has changed. */
export function redraw(element, key, make) {
    if (element.dataset.drawn === key) return;
    element.dataset.drawn = key;
    fill(element, make());
}
