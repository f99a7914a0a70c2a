/*
 * Whether the WebUI answers, and whether it is still the process that served this page. The store's
 * "connection" is "", "lost" or "stale".
 */
import { headers, routeAddress } from "./api.js";
import { el, find, findAll } from "./elements.js";
import { findRoot } from "./host.js";
import { t } from "./language.js";
import { store } from "./store.js";
import * as widgets from "./widgets.js";

/** @import { Child } from "./types" */

const LISTEN_MILLISECONDS = 2000;

let session = "",
    isStale = false,
    listening = false;

/**
 * Every answer contains the session id of the WebUI; another id means that it was restarted, and
 * the page is outdated.
 */
export function noteAnswer(/** @type {Response} */ answer) {
    const now = answer.headers.get("x-lora-trainer-session");
    if (!now) return;
    session ||= now;
    isStale ||= now !== session;
    store.set("connection", isStale ? "stale" : "");
}

/**
 * After a request without an answer: if the next one fails too, the connection is lost, and polled
 * until it is back.
 */
export async function listen() {
    if (listening) return;
    listening = true;
    for (;;) {
        try {
            noteAnswer(
                await fetch(routeAddress("pulse"), {
                    headers: headers(),
                    credentials: "same-origin",
                    cache: "no-store",
                }),
            );
            break;
        } catch {
            store.set("connection", "lost");
        }
        await new Promise((resolve) => setTimeout(resolve, LISTEN_MILLISECONDS));
    }
    listening = false;
    // without our routes, an app has no session id
    if (store.get("connection") === "lost") setTimeout(listen, LISTEN_MILLISECONDS);
}

/** @param {Child[]} content */
const warning = (/** @type {string} */ severity, ...content) =>
    el(
        "div",
        {
            class: "lora-trainer-connection lora-trainer-notice lora-trainer-notice-" + severity,
            role: "alert",
        },
        content,
    );

const lostWarning = () =>
    warning(
        "error",
        el(
            "p",
            t(
                "The WebUI does not answer. A running training continues: it needs neither the WebUI nor this page.",
            ),
        ),
        el("p.lora-trainer-hint", t("Trying again until it is back. What you have typed is kept.")),
    );

const staleWarning = () =>
    warning(
        "warning",
        el(
            "p",
            t(
                "The WebUI was restarted. Reload this page: its other tabs belong to the previous WebUI, and no longer work.",
            ),
        ),
        widgets.row(
            widgets.button({
                label: t("Reload the page"),
                local: true,
                onclick: () => location.reload(),
            }),
        ),
    );

export function showConnection() {
    const place = findRoot();
    if (!place) return;
    const now = store.get("connection") ?? "";
    place.dataset.connection = now;
    for (const button of findAll(place, ".lora-trainer-button")) mute(button);
    find(place, ".lora-trainer-connection")?.remove();
    if (now === "lost") place.append(lostWarning());
    if (now === "stale") place.append(staleWarning());
}

/** While the connection is lost, only buttons that do not need the server are enabled. */
export function mute(/** @type {HTMLElement} */ button) {
    if (store.get("connection") === "lost" && !("local" in button.dataset))
        button.setAttribute("aria-disabled", "true");
    else button.removeAttribute("aria-disabled");
}

store.on("connection", showConnection);
