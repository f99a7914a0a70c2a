/*
 * The strength panel under the prompts of txt2img and img2img: a slider for each <lora:...> of the
 * prompt, and a list of our own LoRAs to insert.
 *
 * The prompt's text is the only truth: the panel reads it and rewrites numbers in it, and nothing
 * of the host's is changed but that text. The hosts set the text without an event when infotext is
 * pasted or a card is clicked, so it is compared now and again while it can be seen. A tag with one
 * number gets one slider. A tag with two (<lora:x:0.7:0.5>) gets two, and each moves its own number
 * only: whoever wrote two numbers chose both, and a slider that kept their ratio would write
 * numbers that nobody chose.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import * as host from "../common/host.js";
import { root } from "../common/host.js";
import { t } from "../common/language.js";
import { onStart } from "../common/start.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as loraTags from "./lora_tags.js";

const TABS = ["txt2img", "img2img"];

const LOOK_MILLISECONDS = 300;

const FRESH_MILLISECONDS = 5000;

const MAXIMUM = 1.5;

const STEP = 0.05;

const known = { loras: [], weights: new Map(), read: 0 };

let panels = [];

let timer = 0;

// --- writing into the prompt -------------------------------------------------------------------

/** Put a change into the text box; caret and scroll position stay with their words. */
function rewrite(box, change) {
    if (box.value.slice(change.start, change.end) === change.text) return;
    box.setRangeText(change.text, change.start, change.end, "preserve");
    host.write(box, box.value);
}

/** The same as if it were typed: the box gets the focus and Ctrl+Z takes it back. */
function type(box, change) {
    box.focus({ preventScroll: true });
    box.setSelectionRange(change.start, change.end);
    const done = change.text
        ? document.execCommand("insertText", false, change.text)
        : document.execCommand("delete");
    if (!done) rewrite(box, change);
}

// --- one row -----------------------------------------------------------------------------------

/** What a row is drawn from besides its numbers: another signature, another row. */
const signature = (tag) =>
    [
        tag.name,
        tag.separate,
        known.weights.get(tag.name),
        tag.te === null || tag.unet === null,
    ].join("\n");

function control(panel, index, tag, which, label) {
    const weight = known.weights.get(tag.name);
    const mark =
        weight === undefined
            ? null
            : {
                  value: weight,
                  label: t("Recommended: {strength}", { strength: loraTags.format(weight) }),
              };
    return widgets.slider({
        label,
        value: tag[which] === null ? 1 : tag[which],
        minimum: 0,
        maximum: MAXIMUM,
        step: STEP,
        mark,
        onchange(strength) {
            const found = loraTags.find(panel.box.value)[index];
            if (!found || !Number.isFinite(strength)) return;
            rewrite(
                panel.box,
                loraTags.edit(found, which === "unet" && !found.separate ? "te" : which, strength),
            );
            panel.sync();
        },
    });
}

function row(panel, index, tag) {
    const controls = tag.separate
        ? {
              te: control(
                  panel,
                  index,
                  tag,
                  "te",
                  t("Strength of {name} in the text encoder", { name: tag.name }),
              ),
              unet: control(
                  panel,
                  index,
                  tag,
                  "unet",
                  t("Strength of {name} in the image", { name: tag.name }),
              ),
          }
        : { te: control(panel, index, tag, "te", t("Strength of {name}", { name: tag.name })) };
    const named = (text, slider) =>
        el(
            "div",
            { class: "lora-trainer-strength-control" },
            el("span", { class: "lora-trainer-help", "aria-hidden": "true" }, text),
            slider.element,
        );
    const remove = widgets.button({ label: t("Remove"), onclick: () => panel.remove(index) });
    remove.setAttribute("aria-label", t("Remove {name} from the prompt", { name: tag.name }));
    const element = el(
        "li",
        { class: "lora-trainer-strength-row" },
        el("span", { class: "lora-trainer-strength-name", title: tag.name }, tag.name),
        tag.separate
            ? el(
                  "div",
                  { class: "lora-trainer-strength-pair" },
                  named(t("Text"), controls.te),
                  named(t("Image"), controls.unet),
              )
            : controls.te.element,
        remove,
        tag.te === null || tag.unet === null
            ? el(
                  "p",
                  { class: "lora-trainer-hint lora-trainer-strength-note" },
                  t(
                      "A number in this tag cannot be read; the WebUI would ignore all LoRAs. Move the slider to write a new one.",
                  ),
              )
            : null,
    );
    return {
        element,
        signature: signature(tag),
        set(now) {
            // not when it is the same: somebody may be typing "0.70" just now
            for (const [which, slider] of Object.entries(controls))
                if (now[which] !== null && slider.value !== now[which]) slider.set(now[which]);
        },
        focus: () => controls.te.range.focus(),
    };
}

// --- the list of our LoRAs ---------------------------------------------------------------------

function choices(panel) {
    const present = new Set(loraTags.find(panel.box.value).map((tag) => tag.name));
    return known.loras.map((lora) =>
        el(
            "li",
            {},
            el(
                "button",
                {
                    type: "button",
                    class: "lora-trainer-insert-choice",
                    onclick: () => panel.insert(lora),
                },
                lora.picture
                    ? el("img", {
                          src: lora.picture,
                          alt: "",
                          loading: "lazy",
                          width: 40,
                          height: 40,
                      })
                    : el("span", { class: "lora-trainer-insert-blank" }),
                el("span", { class: "lora-trainer-insert-name" }, lora.name),
                el(
                    "span",
                    { class: "lora-trainer-help" },
                    present.has(lora.name) ? t("already in the prompt") : lora.trigger || "",
                ),
            ),
        ),
    );
}

function insertion(panel) {
    const list = el("ul", { class: "lora-trainer-insert-list" });
    const details = el(
        "details",
        { class: "lora-trainer-insert" },
        el("summary", {}, t("Insert a LoRA")),
        list,
    );
    const draw = () => fill(list, choices(panel));
    details.addEventListener("toggle", () => {
        if (!details.open) return;
        draw();
        learn().then(() => details.open && draw());
    });
    details.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || !details.open) return;
        // elsewhere on this page Escape interrupts the generation
        event.stopPropagation();
        event.preventDefault();
        details.open = false;
        details.querySelector("summary").focus();
    });
    return details;
}

// --- a panel -----------------------------------------------------------------------------------

const frame = (tab, list, details) =>
    el(
        "div",
        {
            id: "lora_trainer_strength_" + tab,
            class: "lora-trainer lora-trainer-strength",
            role: "group",
            "aria-label": t("LoRA strength"),
            hidden: true,
            lang: root().lang || null,
        },
        list,
        details,
    );

/** Other tags, other rows; the focus stays with its place. */
function drawRows(panel, list, tags) {
    const focused = panel.rows.findIndex((old) => old.element.contains(document.activeElement));
    panel.rows = tags.map((tag, index) => row(panel, index, tag));
    fill(
        list,
        panel.rows.map((made) => made.element),
    );
    if (focused >= 0 && panel.rows[focused]) panel.rows[focused].focus();
}

function makePanel(tab) {
    const panel = { tab, box: null, text: null, rows: [] };
    const list = el("ul", {
        class: "lora-trainer-strength-rows",
        "aria-label": t("LoRAs in the prompt"),
    });
    const details = insertion(panel);
    panel.element = frame(tab, list, details);
    const hear = () => panel.sync();

    /** Find the host's box, again where gradio has made a new one, and stand below it. */
    panel.attach = function () {
        const box = host.prompts(tab).positive;
        if (box !== panel.box) {
            if (panel.box) panel.box.removeEventListener("input", hear);
            if (box) box.addEventListener("input", hear);
            panel.box = box;
            panel.text = null;
        }
        if (!box || panel.element.isConnected) return;
        const place =
            host.page().querySelector("#" + tab + "_prompt_container") ||
            host.page().querySelector("#" + tab + "_prompt").parentElement;
        place.append(panel.element);
    };

    panel.detach = function () {
        if (panel.box) panel.box.removeEventListener("input", hear);
        panel.element.remove();
    };

    /** Show the prompt as it is now. */
    panel.sync = function (redraw) {
        if (!panel.box || (panel.box.value === panel.text && !redraw)) return;
        panel.text = panel.box.value;
        const tags = loraTags.find(panel.text);
        panel.element.hidden = !tags.length && !known.loras.length;
        details.hidden = !known.loras.length;
        if (
            tags.length !== panel.rows.length ||
            tags.some((tag, index) => signature(tag) !== panel.rows[index].signature)
        ) {
            drawRows(panel, list, tags);
        }
        tags.forEach((tag, index) => panel.rows[index].set(tag));
    };

    panel.remove = function (index) {
        const tag = loraTags.find(panel.box.value)[index];
        if (tag) type(panel.box, loraTags.removal(panel.box.value, tag));
        panel.sync();
    };

    panel.insert = function (lora) {
        details.open = false;
        const at = loraTags.find(panel.box.value).findIndex((tag) => tag.name === lora.name);
        if (at >= 0) {
            panel.sync();
            panel.rows[at].focus();
            return;
        }
        type(panel.box, loraTags.addition(panel.box.value, lora.tag));
        panel.sync();
    };

    return panel;
}

// --- what is known of LoRAs --------------------------------------------------------------------

let reading = null;

/**
 * Read our LoRAs and the recommended strengths; not again within a few seconds unless something has
 * changed.
 */
function learn(changed) {
    if (reading) return reading;
    if (!changed && Date.now() - known.read < FRESH_MILLISECONDS) return Promise.resolve();
    reading = api
        .get("insertable")
        .then((answer) => {
            known.read = Date.now();
            known.loras = answer.loras;
            known.weights = new Map(Object.entries(answer.weights));
            for (const panel of panels) panel.sync(true);
        })
        .catch(() => {
            // the panel works without recommendations; the tab itself tells of a WebUI that does
            // not answer
        })
        .finally(() => {
            reading = null;
        });
    return reading;
}

const onScreen = (panel) => Boolean(panel.box && panel.box.offsetParent);

function look() {
    if (document.visibilityState !== "visible") return;
    for (const panel of panels) {
        if (!panel.box || !panel.box.isConnected || !panel.element.isConnected) panel.attach();
        if (onScreen(panel)) panel.sync();
    }
}

function begin() {
    for (const panel of panels) panel.detach();
    panels = TABS.filter((tab) => host.prompts(tab).positive).map(makePanel);
    for (const panel of panels) {
        panel.attach();
        panel.sync();
    }
    clearInterval(timer);
    if (panels.length) timer = setInterval(look, LOOK_MILLISECONDS);
    return learn(true);
}

onStart(begin);

let subscribed = false;

onStart(() => {
    if (subscribed) return;
    subscribed = true;
    store.on("delivered", () => learn(true));
    // training ends while the tab is not looked at; coming back to a prompt is the time to ask
    if (typeof onUiTabChange === "function")
        onUiTabChange(() => {
            if (panels.some(onScreen)) learn();
        });
});
