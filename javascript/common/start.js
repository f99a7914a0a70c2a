/*
 * Starts the tab: initial data, language, layout. Repeated after a change of language, and after
 * the set-up.
 */
import { api } from "./api.js";
import { showConnection } from "./connection.js";
import { el, fill } from "./elements.js";
import { findRoot, root } from "./host.js";
import { setTexts, t } from "./language.js";
import { stopPolling } from "./polling.js";
import { leaveSection, openSection, panels, stepper } from "./sections.js";
import { kept, store } from "./store.js";
import * as widgets from "./widgets.js";

/** @import { HomeView } from "./answers" */

const LANGUAGE_KEY = "lora-trainer-language";

/** Reload the initial data; sections listen to the store's "home". */
export async function refreshHome() {
    const home = await api.get("home");
    store.set("language", home.language);
    store.set("home", home);
    return home;
}

async function learn(/** @type {string} */ language) {
    setTexts(language && language !== "en" ? await api.get(`texts/${language}`) : {});
    root().lang = language.replace("_", "-");
}

function header(/** @type {HomeView} */ home) {
    const language = widgets.select({
        value: home.language,
        label: t("Language"),
        options: home.languages.map((known) => ({ value: known.code, label: known.name })),
        onchange: (code) => {
            kept.set(LANGUAGE_KEY, code);
            store.set("language", code);
            start();
        },
    });
    return el(
        "div.lora-trainer-header",
        widgets.help(
            home.host.cpu
                ? t("Trains on the CPU, because the WebUI uses no graphics card. This is slow.")
                : t("Trains on {device}", { device: home.host.device }),
        ),
        home.languages.length > 1 ? language : null,
    );
}

/** @typedef {(home: HomeView) => unknown} Hook */

/** @type {Hook[]} */
const hooks = [];

/** Register a function that is called at every start, before the first section is shown. */
export const onStart = (/** @type {Hook} */ hook) => hooks.push(hook);

/** Register a function that is called at the first start only. */
export function onFirstStart(/** @type {() => unknown} */ hook) {
    let begun = false;
    onStart(() => {
        if (!begun) hook();
        begun = true;
    });
}

/** Load the initial data and draw the tab anew. */
export async function start() {
    const place = findRoot();
    if (!place) return;
    stopPolling();
    if (store.get("language") === undefined) store.set("language", kept.get(LANGUAGE_KEY) ?? "");
    let home;
    try {
        home = await refreshHome();
        await learn(home.language);
    } catch (problem) {
        fill(place, widgets.problem(problem, tryAgain()));
        return;
    }
    const before = leaveSection();
    fill(place, header(home), stepper(), panels());
    for (const hook of hooks) hook(home);
    showConnection();
    openSection(before);
}

const tryAgain = () =>
    widgets.button({ label: t("Try again"), kind: "primary", local: true, onclick: start });
