/*
 * Parses and edits LoRA tags in a prompt. Pure functions, used by the strength panel and "Try it".
 * Tags are parsed exactly as by the hosts (modules/extra_networks.py, extra_networks_lora.py):
 *
 *     <lora:name>                    both strengths 1
 *     <lora:name:0.7>                both 0.7
 *     <lora:name:0.7:0.5:4>          text encoder 0.7, UNet 0.5, rank limited to 4
 *     <lora:name:te=0.7:unet=0.5>    the same by name; named values take precedence
 *
 * Changing a strength rewrites only that number.
 */
// the hosts' re_extra_net, <(\w+):([^>]+)>, is matched from left to right: a tag inside another one
// is part of it
const TAG = /<([\p{L}\p{N}_]+):([^>]+)>/gu;

// as Python's float(), without inf and nan
const NUMBER = /^[+-]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:e[+-]?\d+(?:_\d+)*)?$/i;

/**
 * A part between two colons: its value without surrounding spaces, and its position.
 *
 * @typedef {{start: number, end: number, value: string}} Part
 */

/** @typedef {{start: number, end: number, text: string}} Change what to replace in a prompt */

/**
 * @typedef {object} Tag
 * @property {number} start where "<" is in the prompt
 * @property {number} end behind ">"
 * @property {string} name
 * @property {number | null} te strength in the text encoder; null when the host could not read it
 * @property {number | null} unet strength in the image model; null when the host could not read it
 * @property {string | null} dyn the rank limit, as written
 * @property {boolean} separate true when the image model's strength is written on its own
 * @property {{te: Part | null, unet: Part | null, after: number, named: boolean}} at where the
 *     numbers are; `after`: where a missing one goes
 */

function number(/** @type {string} */ text) {
    if (!NUMBER.test(text)) return null;
    const value = Number(text.replace(/_/g, ""));
    return Number.isFinite(value) ? value : null;
}

/** At most two decimals, without trailing zeros: 0.7, 1, 0.05, 1.5. */
export function format(/** @type {number} */ value) {
    if (!Number.isFinite(value)) throw new RangeError("a strength is a finite number");
    // + 0 turns -0 into 0
    return String(Math.round(value * 100) / 100 + 0);
}

/** The text without the spaces around it, and where it is. @returns {Part} */
function part(/** @type {string} */ text, /** @type {number} */ offset) {
    const value = text.trim();
    const start = offset + text.length - text.trimStart().length;
    return { start, end: start + value.length, value };
}

/** The parts after "<lora:", from a position in the prompt. */
function parts(/** @type {string} */ inside, /** @type {number} */ offset) {
    /** @type {Part[]} */
    const places = [];
    /** @type {Map<string, Part>} */
    const named = new Map();
    for (const item of inside.split(":")) {
        const pieces = item.split("=");
        // the hosts split at exactly one "="; anything else is positional
        if (pieces.length === 2)
            named.set(pieces[0], part(pieces[1], offset + pieces[0].length + 1));
        // a name keeps its spaces, as in the hosts
        else
            places.push(
                places.length
                    ? part(item, offset)
                    : { start: offset, end: offset + item.length, value: item },
            );
        offset += item.length + 1;
    }
    return { places, named };
}

/** Null for a tag without a name, which no host can use. @returns {Tag | null} */
function read(/** @type {RegExpExecArray} */ match) {
    const offset = match.index + 1 + match[1].length + 1;
    const { places, named } = parts(match[2], offset);
    if (!places.length || !places[0].value) return null;
    const te = named.get("te") ?? places[1] ?? null;
    const unet = named.get("unet") ?? places[2] ?? null;
    const dyn = named.get("dyn") ?? places[3] ?? null;
    const teValue = te ? number(te.value) : 1;
    return {
        start: match.index,
        end: match.index + match[0].length,
        name: places[0].value,
        te: teValue,
        unet: unet ? number(unet.value) : teValue,
        dyn: dyn?.value ?? null,
        separate: unet !== null,
        at: { te, unet, after: places[0].end, named: named.has("unet") },
    };
}

/** All LoRA tags of a prompt, in order. */
export const find = (/** @type {string} */ prompt) =>
    [...prompt.matchAll(TAG)].flatMap((match) => (match[1] === "lora" && read(match)) || []);

/**
 * The change that sets a strength of a tag. With one number, "te" is both strengths. With two, the
 * other one is kept.
 *
 * @param {Tag} tag
 * @param {"te" | "unet"} which
 * @param {number} strength
 * @returns {Change}
 */
export function edit(tag, which, strength) {
    const text = format(strength);
    const there = tag.at[which];
    if (there) return { start: there.start, end: there.end, text };
    if (which === "unet") throw new RangeError("this tag has one strength; write te");
    const spelled = tag.at.named ? ":te=" + text : ":" + text;
    return { start: tag.at.after, end: tag.at.after, text: spelled };
}

export const apply = (/** @type {string} */ prompt, /** @type {Change} */ { start, end, text }) =>
    prompt.slice(0, start) + text + prompt.slice(end);

/**
 * The change that removes a tag, with a superfluous space or comma.
 *
 * @returns {Change}
 */
export function removal(/** @type {string} */ prompt, /** @type {Tag} */ tag) {
    const before = prompt.slice(0, tag.start);
    const after = prompt.slice(tag.end);
    let { start, end } = tag;
    const comma = after.match(/^[ \t]*,[ \t]*/);
    if (comma && /(^|[,\n])[ \t]*$/.test(before)) end += comma[0].length;
    else if (/[ \t]$/.test(before) && /^([ \t,\n]|$)/.test(after)) start -= 1;
    else if (/(^|\n)$/.test(before) && /^[ \t]/.test(after)) end += 1;
    return { start, end, text: "" };
}

/**
 * The change that appends `tag` (with its trigger) to the prompt.
 *
 * @returns {Change}
 */
export function addition(/** @type {string} */ prompt, /** @type {string} */ tag) {
    const gap = prompt === "" || /\s$/.test(prompt) ? "" : " ";
    return { start: prompt.length, end: prompt.length, text: gap + tag };
}

/** A tag's text. */
export const make = (/** @type {string} */ name, /** @type {number} */ strength) =>
    "<lora:" + name + ":" + format(strength) + ">";
