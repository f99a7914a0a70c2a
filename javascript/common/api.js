/*
 * Requests to the extension's routes, and what went wrong with one of them as the server says it.
 *
 * Addresses are relative, because the WebUI may live under --subpath.
 */
import { heard, listen } from "./connection.js";
import { t } from "./language.js";
import { store } from "./store.js";

const ROUTES = "lora-trainer/";

/** What went wrong, as the server says it: a message and a hint for the visitor. */
export class Problem extends Error {
    /**
     * @param {string} message
     * @param {object} [told]
     * @param {string} [told.hint]
     * @param {number} [told.status] of the answer; 0 where there was none
     * @param {any} [told.current] what somebody else has made of it meanwhile
     * @param {string} [told.kind] the error's class on the server
     * @param {{message: string, hint: string}[] | null} [told.problems] each of several
     */
    constructor(
        message,
        { hint = "", status = 0, current = null, kind = "", problems = null } = {},
    ) {
        super(message);
        this.hint = hint;
        this.status = status;
        this.current = current;
        this.kind = kind;
        this.problems = problems;
    }
}

export const routeAddress = (path, query) => {
    const parameters = new URLSearchParams(
        Object.entries(query || {}).filter(
            ([, value]) => value !== undefined && value !== null && value !== "",
        ),
    );
    const tail = parameters.toString();
    return ROUTES + path.replace(/^\//, "") + (tail ? "?" + tail : "");
};

export function headers(more) {
    const language = store.get("language");
    return {
        "X-LoRA-Trainer": "1",
        ...(language ? { "X-LoRA-Trainer-Language": language } : {}),
        ...more,
    };
}

function problemOf(status, text) {
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

async function ask(path, options, query) {
    let answer, text;
    try {
        answer = await fetch(routeAddress(path, query), {
            credentials: "same-origin",
            cache: "no-store",
            ...options,
        });
        // a WebUI may end in the middle of its answer, too
        text = await answer.text();
        heard(answer);
    } catch (trouble) {
        if (trouble.name !== "TimeoutError") listen();
        throw new Problem(t("The WebUI does not answer."), {
            hint: t("It may be starting again. Wait a moment, or look at its console."),
        });
    }
    if (!answer.ok) throw problemOf(answer.status, text);
    return (answer.headers.get("content-type") || "").includes("json") ? JSON.parse(text) : text;
}

export const api = {
    get: (path, query) => ask(path, { headers: headers() }, query),
    /** `seconds`: how long an answer may take; `keepalive`: the request outlives the page. */
    post: (path, body, { seconds = 0, keepalive = false } = {}) =>
        ask(path, {
            method: "POST",
            headers: headers({ "Content-Type": "application/json" }),
            body: JSON.stringify(body || {}),
            keepalive,
            signal: seconds ? AbortSignal.timeout(seconds * 1000) : null,
        }),
    /**
     * One file as the raw body; onProgress hears a share from 0 to 1. The promise has .cancel().
     */
    upload(path, file, onProgress, query) {
        const request = new XMLHttpRequest();
        const promise = new Promise((resolve, reject) => {
            request.open(
                "POST",
                routeAddress(path, { name: file.name, size: file.size, ...query }),
            );
            for (const [name, value] of Object.entries(
                headers({ "Content-Type": "application/octet-stream" }),
            ))
                request.setRequestHeader(name, value);
            request.upload.onprogress = (event) =>
                event.lengthComputable && onProgress && onProgress(event.loaded / event.total);
            request.onload = () =>
                request.status < 300
                    ? resolve(JSON.parse(request.responseText))
                    : reject(problemOf(request.status, request.responseText));
            request.onerror = () =>
                reject(
                    new Problem(t("The upload was interrupted."), {
                        hint: t("Try again; what has arrived stays."),
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
