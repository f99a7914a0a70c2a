/*
 * Prompt text <-> LoRA tags. Pure: a text and numbers come in, tags or a new text go out; no page,
 * no host, no state. Called by the strength panel and by "Try it". Reads tags exactly as the hosts
 * do (modules/extra_networks.py, extra_networks_lora.py):
 *
 *     <lora:name>                    both strengths 1
 *     <lora:name:0.7>                both 0.7
 *     <lora:name:0.7:0.5:4>          text encoder 0.7, image model 0.5, rank cut to 4
 *     <lora:name:te=0.7:unet=0.5>    the same, named; a named value wins over a place
 *
 * A change of a strength rewrites that number's characters and nothing else.
 */
// the hosts' re_extra_net is <(\w+):([^>]+)> and takes tags from left to right: what looks like a
// tag inside another one is part of it
const TAG = /<([\p{L}\p{N}_]+):([^>]+)>/gu;

// what Python's float() reads, but for "inf" and "nan", which are no strengths
const NUMBER = /^[+-]?(?:\d+(?:_\d+)*\.?(?:\d+(?:_\d+)*)?|\.\d+(?:_\d+)*)(?:e[+-]?\d+(?:_\d+)*)?$/i;

/**
 * One stretch between two colons: its value, without the spaces around it, and where that is.
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
 * @property {string | null} dyn the rank it is cut to, as written
 * @property {boolean} separate true when the image model's strength is written on its own
 * @property {{te: Part | null, unet: Part | null, after: number, named: boolean}} at where the
 *     numbers are; `after`: where a missing one goes
 */

function number(/** @type {string} */ text) {
    if (!NUMBER.test(text)) return null;
    const value = Number(text.replace(/_/g, ""));
    return Number.isFinite(value) ? value : null;
}

/** At most two decimals, no zeros at the end: 0.7, 1, 0.05, 1.5. */
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

/** What follows "<lora:", and begins at a place in the prompt. */
function parts(/** @type {string} */ inside, /** @type {number} */ offset) {
    /** @type {Part[]} */
    const places = [];
    /** @type {Map<string, Part>} */
    const named = new Map();
    for (const item of inside.split(":")) {
        const pieces = item.split("=");
        // the hosts take exactly one "=" for a name; anything else is a place in the row
        if (pieces.length === 2)
            named.set(pieces[0], part(pieces[1], offset + pieces[0].length + 1));
        // a name keeps its spaces: the hosts look for it as it is written
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

/** Every LoRA tag of a prompt, in its order. */
export const find = (/** @type {string} */ prompt) =>
    [...prompt.matchAll(TAG)].flatMap((match) => (match[1] === "lora" && read(match)) || []);

/**
 * What to replace so that a tag has a strength. While a tag has one number, "te" is the strength of
 * both. A tag with two numbers keeps the one that was not moved.
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
 * What to take away so that a tag is gone: the tag, and the space or comma that would be left over.
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
 * What to add so that `tag` (with its trigger) ends the prompt.
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
