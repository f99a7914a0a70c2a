/*
 * Whether the WebUI is there, and whether it is still the one that this page belongs to. The
 * store's "connection" is "", "lost" or "stale". /
 */
import { headers, routeAddress } from "./api.js";
import { el } from "./elements.js";
import { root } from "./host.js";
import { t } from "./language.js";
import { store } from "./store.js";
import * as widgets from "./widgets.js";

const LISTEN_MILLISECONDS = 2000;

let session = null,
    isStale = false,
    listening = false;

/**
 * Every answer names the WebUI's app; another name is another start of it, whose page this one is
 * not.
 */
export function heard(answer) {
    const now = answer.headers.get("x-lora-trainer-session");
    if (!now) return;
    session = session || now;
    isStale = isStale || now !== session;
    store.set("connection", isStale ? "stale" : "");
}

/**
 * A question got no answer. If the next gets none either, the WebUI is gone; it is asked until it
 * is back.
 */
export async function listen() {
    if (listening) return;
    listening = true;
    for (;;) {
        try {
            heard(
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
    // an app that has no routes of ours yet has no name
    if (store.get("connection") === "lost") setTimeout(listen, LISTEN_MILLISECONDS);
}

export function showConnection() {
    if (!root()) return;
    const now = store.get("connection") || "";
    root().dataset.connection = now;
    for (const button of root().querySelectorAll(".lora-trainer-button")) mute(button);
    const before = root().querySelector(".lora-trainer-connection");
    if (before) before.remove();
    if (now === "lost")
        root().append(
            el(
                "div",
                {
                    class: "lora-trainer-connection lora-trainer-notice lora-trainer-notice-error",
                    role: "alert",
                },
                el(
                    "p",
                    {},
                    t(
                        "The WebUI does not answer. A training goes on by itself: it needs neither the WebUI nor this page.",
                    ),
                ),
                el(
                    "p",
                    { class: "lora-trainer-hint" },
                    t("Trying again until it is back. What you have typed is kept."),
                ),
            ),
        );
    if (now === "stale")
        root().append(
            el(
                "div",
                {
                    class: "lora-trainer-connection lora-trainer-notice lora-trainer-notice-warning",
                    role: "alert",
                },
                el(
                    "p",
                    {},
                    t(
                        "The WebUI was started again. Reload this page: its other tabs belong to the WebUI before, and do not work any more.",
                    ),
                ),
                el(
                    "div",
                    { class: "lora-trainer-row" },
                    widgets.button({
                        label: t("Reload the page"),
                        local: true,
                        onclick: () => location.reload(),
                    }),
                ),
            ),
        );
}

/** Without the WebUI only those buttons work that need nothing of it. */
export function mute(button) {
    if (store.get("connection") === "lost" && !("local" in button.dataset))
        button.setAttribute("aria-disabled", "true");
    else button.removeAttribute("aria-disabled");
}

store.on("connection", showConnection);
