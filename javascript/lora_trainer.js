/*
 * The tab's entry, the only script that the WebUI loads itself: it asks the server for the URLs of
 * the modules, and imports them.
 *
 * The URLs contain a hash of all modules as they were when the WebUI started, so that a page has
 * all modules of one version, whatever an update does to the files and whatever the browser has
 * cached.
 */
"use strict";

{
    const ROUTES = "lora-trainer/";
    /** After "Reload UI", a WebUI serves its page before the routes of extensions. */
    const EARLY = { milliseconds: 1000, most: 60 };
    const NO_ANSWER = {
        message: "The WebUI does not answer.",
        hint: "It may be starting again. Wait a moment, or look at its console.",
    };
    const NO_MODULES = {
        message: "LoRA Trainer was updated, and the WebUI still runs the previous version.",
        hint: "Restart the WebUI.",
    };
    const OTHER_ANSWER = {
        message: "The WebUI answered with an error.",
        hint: "Look at the WebUI's console.",
    };
    let tries = 0;

    /** URLs are relative to the page, because the WebUI may be under --subpath. */
    const address = (/** @type {string} */ path) => new URL(ROUTES + path, document.baseURI).href;

    /** @typedef {{message: string, hint: string, label?: string, report?: string}} LoadError */

    const root = () => {
        const page = typeof gradioApp === "function" ? gradioApp() : document;
        const found = page.querySelector("#lora_trainer_root");
        return found instanceof HTMLElement ? found : null;
    };

    /**
     * @template {keyof HTMLElementTagNameMap} K
     * @param {K} tag
     * @param {Record<string, string>} attributes
     * @param {(Node | string)[]} children
     */
    function element(tag, attributes, ...children) {
        const made = document.createElement(tag);
        for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
        made.append(...children);
        return made;
    }

    function button(/** @type {string} */ label, /** @type {() => void} */ onclick) {
        const made = element(
            "button",
            { type: "button", class: "lora-trainer-button lora-trainer-primary" },
            label,
        );
        made.addEventListener("click", onclick);
        return made;
    }

    /** Show an error, as widgets.problem does. */
    function show(/** @type {LoadError} */ { message, hint }, /** @type {HTMLElement} */ action) {
        root()?.replaceChildren(
            element(
                "div",
                { class: "lora-trainer-notice lora-trainer-notice-error", role: "alert" },
                element("p", {}, message),
                element("p", { class: "lora-trainer-hint" }, hint),
                element("div", { class: "lora-trainer-row" }, action),
            ),
        );
    }

    /** The extension is broken: the same message as of callbacks.py. */
    function showReport(/** @type {LoadError} */ { message, hint, label = "", report = "" }) {
        const box = element("textarea", {
            id: "lora_trainer_report",
            readonly: "",
            rows: "12",
            style: "width: 100%",
        });
        box.value = report;
        root()?.replaceChildren(
            element(
                "div",
                { id: "lora_trainer_trouble", role: "alert" },
                element("h2", {}, message),
                element("p", {}, hint),
                element("label", { for: "lora_trainer_report" }, label),
                box,
            ),
        );
    }

    /** The modules' URLs: {modules} or {error}, with `again` if the server may not be ready. */
    async function ask() {
        let answer;
        try {
            answer = await fetch(address("modules"), {
                headers: { "X-LoRA-Trainer": "1" },
                cache: "no-store",
            });
        } catch {
            return { error: NO_ANSWER, again: true };
        }
        const body = await answer.json().catch(() => ({}));
        if (answer.ok && body.start) return { modules: body };
        // without our routes, an app has no session id
        if (answer.status === 404 && answer.headers.get("x-lora-trainer-session"))
            return { error: NO_MODULES };
        return { error: body.error || OTHER_ANSWER, again: answer.status === 404 };
    }

    async function load() {
        const { modules, error, again } = await ask();
        if (error) {
            if (error.report) showReport(error);
            else show(error, button("Try again", load));
            tries += 1;
            if (again && tries <= EARLY.most) setTimeout(load, EARLY.milliseconds);
            return;
        }
        // in parallel, not one after the other as they import each other
        for (const path of modules.all)
            document.head.append(element("link", { rel: "modulepreload", href: address(path) }));
        let tab;
        try {
            tab = await import(address(modules.start));
        } catch (problem) {
            console.error(problem);
            show(
                modules.error,
                button(modules.error.label, () => location.reload()),
            );
            return;
        }
        tab.start();
    }

    function boot() {
        const place = root();
        if (!place || place.dataset.started) return;
        place.dataset.started = "1";
        load();
    }

    if (typeof onUiLoaded === "function") onUiLoaded(boot);
    else document.addEventListener("DOMContentLoaded", boot);
}
