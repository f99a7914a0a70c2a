/*
 * A caption's text: normalization, words, trigger word.
 */
/** A caption as the server stores it: each line is a caption of its own. */
export const tidy = (/** @type {string} */ text) =>
    text
        .split(/[\r\n]+/)
        .map((line) => line.split(/\s+/).filter(Boolean).join(" "))
        .filter(Boolean)
        .join("\n");

/** Number of words; in Chinese and Japanese, of characters. */
export const wordCount = (/** @type {string} */ text) =>
    (
        text.match(
            /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[^\s,\uFF0C\u3002.;:\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]+/gu,
        ) || []
    ).length;

/** Whether the text contains the trigger word as a separate word. */
export function hasTrigger(/** @type {string} */ text, /** @type {string} */ word) {
    const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    return new RegExp("(?<![\\p{L}\\p{N}_])" + escaped + "(?![\\p{L}\\p{N}_])", "iu").test(text);
}
