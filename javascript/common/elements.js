/*
 * Creates, finds and changes DOM elements.
 */

/** @import { Attributes, Child } from "./types" */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Create an element: "div" or "div.some-class.another", then attributes (class, on..., aria-...,
 * dataset, style as objects), then children: elements, strings, or nothing.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K | `${K}.${string}`} tag
 * @param {Attributes<HTMLElementTagNameMap[K]> | Child} [first]
 * @param {Child[]} rest
 */
export function el(tag, first, ...rest) {
    const [name, ...classes] = tag.split(".");
    const element = /** @type {HTMLElementTagNameMap[K]} */ (document.createElement(name));
    if (classes.length) element.className = classes.join(" ");
    return isChild(first) ? fill(element, first, rest) : build(element, first, rest);
}

/** @returns {content is Child} */
const isChild = (/** @type {unknown} */ content) =>
    typeof content !== "object" ||
    content === null ||
    content instanceof Node ||
    Array.isArray(content);

/**
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Attributes<SVGElementTagNameMap[K]>} attributes
 * @param {Child[]} children
 */
export function svg(tag, attributes, ...children) {
    return build(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * @template {HTMLElement | SVGElement} E
 * @param {E} element
 * @param {Record<string, any>} attributes
 * @param {Child[]} children
 */
function build(element, attributes = {}, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (value === undefined || value === null || value === false) continue;
        if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
        else if (name === "dataset") Object.assign(element.dataset, value);
        else if (name === "style") Object.assign(element.style, value);
        else if (name === "value" || name === "checked" || name === "indeterminate")
            Object.assign(element, { [name]: value });
        else element.setAttribute(name, value === true ? "" : value);
    }
    return fill(element, ...children);
}

/**
 * Replace an element's children.
 *
 * @template {Element} E
 * @param {E} element
 * @param {Child[]} children
 */
export function fill(element, ...children) {
    /** @type {(Node | string)[]} */
    const wanted = [];
    const take = (/** @type {Child} */ child) => {
        if (Array.isArray(child)) child.forEach(take);
        else if (child instanceof Node || typeof child === "string") wanted.push(child);
        else if (typeof child === "number") wanted.push(String(child));
    };
    take(children);
    element.replaceChildren(...wanted);
    return element;
}

/** The first match of a selector, or null. */
export function find(/** @type {ParentNode} */ within, /** @type {string} */ selector) {
    const found = within.querySelector(selector);
    return found instanceof HTMLElement ? found : null;
}

/** The same. Throws without a match. */
export function need(/** @type {ParentNode} */ within, /** @type {string} */ selector) {
    const found = find(within, selector);
    if (!found) throw new Error("No element matches " + selector + ".");
    return found;
}

export const findAll = (/** @type {ParentNode} */ within, /** @type {string} */ selector) =>
    [...within.querySelectorAll(selector)].filter((found) => found instanceof HTMLElement);

/**
 * The number for a key, or 0.
 *
 * @param {KeyboardEvent} event
 * @param {Record<string, number>} ways
 */
export const wayOf = (event, ways) => ways[event.key] ?? 0;

let serial = 0;

export const uniqueId = (/** @type {string} */ name) =>
    "lora_trainer_" + name + "_" + (serial += 1);

/** Set textContent if it changed: the host observes all mutations of the page. */
export function put(/** @type {Element} */ element, /** @type {string} */ text) {
    if (element.textContent !== text) element.textContent = text;
}

/**
 * Redraw if the key has changed.
 *
 * @param {HTMLElement} element
 * @param {string} key
 * @param {() => Child} make
 */
export function redraw(element, key, make) {
    if (element.dataset.drawn === key) return;
    element.dataset.drawn = key;
    fill(element, make());
}
