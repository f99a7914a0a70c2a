/*
 * A caption as a text: how the server keeps it, its words, the trigger word in it.
 */
/** A caption as the server keeps it: of several lines each is a caption of its own. */
export const tidy = (/** @type {string} */ text) =>
    text
        .split(/[\r\n]+/)
        .map((line) => line.split(/\s+/).filter(Boolean).join(" "))
        .filter(Boolean)
        .join("\n");

/** How many words a caption has; in Chinese and Japanese each character is one. */
export const wordCount = (/** @type {string} */ text) =>
    (
        text.match(
            /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[^\s,\uFF0C\u3002.;:\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]+/gu,
        ) || []
    ).length;

/** Whether the trigger word stands in a text as a word of its own. */
export function hasTrigger(/** @type {string} */ text, /** @type {string} */ word) {
    const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return new RegExp("(?<![\\p{L}\\p{N}_])" + escaped + "(?![\\p{L}\\p{N}_])", "iu").test(text);
}
