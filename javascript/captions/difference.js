/*
 * The word-level difference between a caption before and after a change.
 */
import { el } from "../common/elements.js";

const MOST_WORDS = 400;

// --- before and after --------------------------------------------------------------------------

/** Words, spaces, punctuation marks, and single Chinese characters. */
const pieces = (/** @type {string} */ text) =>
    text.match(/[\p{Script=Han}]|[\p{L}\p{N}_'\u2019-]+|\s+|[^\p{L}\p{N}\s]/gu) || [];

/** @typedef {["same" | "gone" | "new", string]} Piece */

/** Two texts -> [[kind, text]], in reading order. */
export function difference(/** @type {string} */ before, /** @type {string} */ after) {
    /** @type {Piece[]} */
    const found = [];
    const one = pieces(before),
        two = pieces(after);
    // common prefix and suffix are skipped: little is left
    const shorter = Math.min(one.length, two.length);
    let start = 0,
        end = 0;
    while (start < shorter && one[start] === two[start]) start += 1;
    while (end < shorter - start && one[one.length - 1 - end] === two[two.length - 1 - end])
        end += 1;
    const first = one.slice(0, start).join(""),
        last = one.slice(one.length - end).join("");
    if (first) found.push(["same", first]);
    middle(one.slice(start, one.length - end), two.slice(start, two.length - end), found);
    if (last) found.push(["same", last]);
    return found;
}

/**
 * The difference of two token lists without common prefix and suffix, added to `found`.
 *
 * @param {string[]} one
 * @param {string[]} two
 * @param {Piece[]} found
 */
function middle(one, two, found) {
    if (one.length > MOST_WORDS || two.length > MOST_WORDS) {
        if (one.length) found.push(["gone", one.join("")]);
        if (two.length) found.push(["new", two.join("")]);
        return;
    }
    // longest common subsequence, from the end
    const length = Array.from({ length: one.length + 1 }, () => new Uint16Array(two.length + 1));
    for (let i = one.length - 1; i >= 0; i -= 1) {
        for (let j = two.length - 1; j >= 0; j -= 1)
            length[i][j] =
                one[i] === two[j]
                    ? length[i + 1][j + 1] + 1
                    : Math.max(length[i + 1][j], length[i][j + 1]);
    }
    const add = (/** @type {Piece[0]} */ kind, /** @type {string} */ text) => {
        const last = found.at(-1);
        if (last?.[0] === kind) last[1] += text;
        else found.push([kind, text]);
    };
    let i = 0,
        j = 0;
    while (i < one.length || j < two.length) {
        if (i < one.length && j < two.length && one[i] === two[j]) {
            add("same", one[i]);
            i += 1;
            j += 1;
        } else if (i < one.length && (j === two.length || length[i + 1][j] >= length[i][j + 1])) {
            add("gone", one[i]);
            i += 1;
        } else {
            add("new", two[j]);
            j += 1;
        }
    }
}

export const shownDifference = (/** @type {string} */ before, /** @type {string} */ after) =>
    el(
        "p.lora-trainer-bench-difference",
        difference(before, after).map(([kind, text]) =>
            kind === "same" ? text : el(kind === "gone" ? "del" : "ins", {}, text),
        ),
    );
