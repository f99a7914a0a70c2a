// What a page of the hosts offers to extensions' scripts, in as few lines as behave the same.
"use strict";

var opts = {};
var hostCallbacks = {
    update: [],
    afterUpdate: [],
    loaded: [],
    tabChange: [],
    optionsChanged: [],
    optionsAvailable: [],
};
var hostWasLoaded = false;
var hostTab = null;
var hostTimer = null;

function gradioApp() {
    const app = document.getElementsByTagName("gradio-app")[0];
    if (!app) return document;
    app.getElementById = (id) => document.getElementById(id);
    return app.shadowRoot || app;
}

function get_uiCurrentTab() {
    return gradioApp().querySelector("#tabs > .tab-nav > button.selected");
}

function get_uiCurrentTabContent() {
    return gradioApp().querySelector('#tabs > .tabitem[id^=tab_]:not([style*="display: none"])');
}

function onUiUpdate(callback) {
    hostCallbacks.update.push(callback);
}
function onAfterUiUpdate(callback) {
    hostCallbacks.afterUpdate.push(callback);
}
function onUiLoaded(callback) {
    hostCallbacks.loaded.push(callback);
}
function onUiTabChange(callback) {
    hostCallbacks.tabChange.push(callback);
}
function onOptionsChanged(callback) {
    hostCallbacks.optionsChanged.push(callback);
}
function onOptionsAvailable(callback) {
    if (Object.keys(opts).length) callback();
    else hostCallbacks.optionsAvailable.push(callback);
}

function executeCallbacks(queue, argument) {
    for (const callback of queue) {
        try {
            callback(argument);
        } catch (error) {
            console.error("error running callback", callback, ":", error);
        }
    }
}

function readOptions() {
    const box = gradioApp().querySelector("#settings_json textarea");
    if (Object.keys(opts).length || !box || !box.value) return;
    opts = JSON.parse(box.value);
    box.closest("#settings_json").parentElement.style.display = "none";
    executeCallbacks(hostCallbacks.optionsAvailable);
    executeCallbacks(hostCallbacks.optionsChanged);
}

document.addEventListener("DOMContentLoaded", () => {
    new MutationObserver((mutations) => {
        if (!hostWasLoaded && gradioApp().querySelector("#txt2img_prompt")) {
            hostWasLoaded = true;
            executeCallbacks(hostCallbacks.loaded);
        }
        executeCallbacks(hostCallbacks.update, mutations);
        clearTimeout(hostTimer);
        hostTimer = setTimeout(() => {
            readOptions();
            executeCallbacks(hostCallbacks.afterUpdate);
        }, 200);
        const tab = get_uiCurrentTab();
        if (tab && tab !== hostTab) {
            hostTab = tab;
            executeCallbacks(hostCallbacks.tabChange);
        }
    }).observe(gradioApp(), { childList: true, subtree: true });
});

function set_theme(theme) {
    if (!location.href.includes("?__theme=")) location.replace(location.href + "?__theme=" + theme);
}

function updateInput(target) {
    const event = new Event("input", { bubbles: true });
    Object.defineProperty(event, "target", { value: target });
    target.dispatchEvent(event);
}

function switch_to_txt2img() {
    gradioApp().querySelector("#tabs").querySelectorAll("button")[0].click();
    return Array.from(arguments);
}

function switch_to_img2img() {
    gradioApp().querySelector("#tabs").querySelectorAll("button")[1].click();
    return Array.from(arguments);
}

// a second click on a card takes its tag out again
function cardClicked(tabname, text, negative, allowNegative) {
    const insert = (id, what) => {
        const area = gradioApp().querySelector(`#${id} textarea`);
        const tag = (what.match(/^<\w+:[^:>]+/) || [what])[0];
        const there = new RegExp(
            "\\s*" +
                tag.replace(/[.*+?^${}()|[\]\\]/g, "\\$&") +
                "(:[^>]*)?>" +
                what.replace(/^<[^>]*>/, "").replace(/[.*+?^${}()|[\]\\]/g, "\\$&"),
        );
        area.value = there.test(area.value)
            ? area.value.replace(there, "")
            : area.value + opts.extra_networks_add_text_separator + what;
        updateInput(area);
    };
    insert(`${tabname}_prompt`, text);
    if (negative) insert(`${tabname}_neg_prompt`, negative);
}

function restart_reload() {
    document.body.innerHTML = "<h1>Reloading...</h1>";
    const ping = () =>
        fetch("./internal/ping").then(
            (answer) => (answer.ok ? location.reload() : setTimeout(ping, 300)),
            () => setTimeout(ping, 300),
        );
    setTimeout(ping, 1500);
    return [];
}
