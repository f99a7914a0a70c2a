/*
 * Requests to the extension's routes, and their errors.
 *
 * URLs are relative, because the WebUI may be under --subpath.
 */
import { noteAnswer, listen } from "./connection.js";
import { t } from "./language.js";
import { store } from "./store.js";

/** @import { AcceptedView, GetAnswers, PostAnswers, Sentence } from "./answers" */
/** @import { Body } from "./types" */

/** @typedef {Record<string, string | number | null | undefined>} Query */

const ROUTES = "lora-trainer/";

/** An error of the server: a message and a hint for the user. */
export class Problem extends Error {
    /**
     * @param {string} message
     * @param {object} [details]
     * @param {string} [details.hint]
     * @param {number} [details.status] HTTP status; 0 without a response
     * @param {any} [details.current] the current state, if someone else has changed it
     * @param {string} [details.kind] the error's class on the server
     * @param {Sentence[]} [details.problems] the individual errors, if there are several
     */
    constructor(message, { hint = "", status = 0, current = null, kind = "", problems = [] } = {}) {
        super(message);
        this.hint = hint;
        this.status = status;
        this.current = current;
        this.kind = kind;
        this.problems = problems;
    }
}

/** Return a caught Problem; rethrow other errors. */
export function expected(/** @type {unknown} */ caught) {
    if (caught instanceof Problem) return caught;
    throw caught;
}

/**
 * @param {string} path
 * @param {Query} [query]
 */
export function routeAddress(path, query = {}) {
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries(query))
        if (value !== undefined && value !== null && value !== "")
            parameters.append(name, String(value));
    const tail = parameters.toString();
    return ROUTES + path.replace(/^\//, "") + (tail ? "?" + tail : "");
}

/** @returns {Record<string, string>} */
export function headers(/** @type {string} */ contentType = "") {
    const language = store.get("language");
    return {
        "X-LoRA-Trainer": "1",
        ...(language && { "X-LoRA-Trainer-Language": language }),
        ...(contentType && { "Content-Type": contentType }),
    };
}

function problemOf(/** @type {number} */ status, /** @type {string} */ text) {
    try {
        const answer = JSON.parse(text);
        return new Problem(answer.error.message, {
            ...answer.error,
            status,
            current: answer.current,
        });
    } catch {
        return new Problem(t("The WebUI answered with an error ({status}).", { status }), {
            status,
            hint: t("Look at the WebUI's console."),
        });
    }
}

/**
 * @param {string} path
 * @param {RequestInit} options
 * @param {Query} [query]
 */
async function ask(path, options, query) {
    let answer, text;
    try {
        answer = await fetch(routeAddress(path, query), {
            credentials: "same-origin",
            cache: "no-store",
            ...options,
        });
        // the connection may also be lost while the body is read
        text = await answer.text();
        noteAnswer(answer);
    } catch (error) {
        if (!(error instanceof DOMException && error.name === "TimeoutError")) listen();
        throw new Problem(t("The WebUI does not answer."), {
            hint: t("It may be starting again. Wait a moment, or look at its console."),
        });
    }
    if (!answer.ok) throw problemOf(answer.status, text);
    return (answer.headers.get("content-type") || "").includes("json") ? JSON.parse(text) : text;
}

export const api = {
    /**
     * @template {keyof GetAnswers} P
     * @param {P} path
     * @param {Query} [query]
     * @returns {Promise<GetAnswers[P]>}
     */
    get: (path, query) => ask(path, { headers: headers() }, query),
    /**
     * `seconds`: timeout; `keepalive`: the request outlives the page.
     *
     * @template {keyof PostAnswers} P
     * @param {P} path
     * @param {Body<P>} [body]
     * @returns {Promise<PostAnswers[P]>}
     */
    post: (path, body, { seconds = 0, keepalive = false } = {}) =>
        ask(path, {
            method: "POST",
            headers: headers("application/json"),
            body: JSON.stringify(body ?? {}),
            keepalive,
            signal: seconds ? AbortSignal.timeout(seconds * 1000) : null,
        }),
    /**
     * Upload a file as the raw body; onProgress receives a fraction from 0 to 1. The promise has
     * .cancel().
     *
     * @param {string} path
     * @param {File} file
     * @param {(share: number) => void} onProgress
     * @param {Query} [query]
     */
    upload(path, file, onProgress, query) {
        const request = new XMLHttpRequest();
        /** @type {Promise<AcceptedView>} */
        const promise = new Promise((resolve, reject) => {
            const address = routeAddress(path, { name: file.name, size: file.size, ...query });
            request.open("POST", address);
            for (const [name, value] of Object.entries(headers("application/octet-stream")))
                request.setRequestHeader(name, value);
            request.upload.onprogress = (event) =>
                event.lengthComputable && onProgress(event.loaded / event.total);
            request.onload = () =>
                request.status < 300
                    ? resolve(JSON.parse(request.responseText))
                    : reject(problemOf(request.status, request.responseText));
            request.onerror = () =>
                reject(
                    new Problem(t("The upload was interrupted."), {
                        hint: t("Try again; files that were uploaded are kept."),
                    }),
                );
            request.onabort = () =>
                reject(new Problem(t("The upload was cancelled."), { kind: "Cancelled" }));
            request.send(file);
        });
        return Object.assign(promise, { cancel: () => request.abort() });
    },
};

export const randomToken = () =>
    Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) =>
        part.toString(16).padStart(8, "0"),
    ).join("");
