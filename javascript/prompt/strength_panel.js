/*
 * The strength panel under the prompts of txt2img and img2img: a slider per <lora:...> of the
 * prompt, and a list of LoRAs to insert.
 *
 * The prompt's text is the only state: the panel parses it and rewrites numbers in it. The hosts
 * set the text without an event when infotext is pasted or a card is clicked, so it is polled while
 * visible. A tag with one number has one slider. A tag with two (<lora:x:0.7:0.5>) has two
 * independent ones.
 */
import { api } from "../common/api.js";
import { el, fill, find, need } from "../common/elements.js";
import * as host from "../common/host.js";
import { t } from "../common/language.js";
import { onFirstStart, onStart } from "../common/start.js";
import { store } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as loraTags from "./lora_tags.js";

/** @import { LoraView } from "../common/answers" */
/** @import { Change, Tag } from "./lora_tags.js" */
/** @import { Tab } from "../common/host.js" */

/** @typedef {"te" | "unet"} Which */

/** @type {Tab[]} */
const TABS = ["txt2img", "img2img"];

const POLL_MILLISECONDS = 300;

const FRESH_MILLISECONDS = 5000;

const MAXIMUM = 1.5;

const STEP = 0.05;

const known = {
    /** @type {LoraView[]} */
    loras: [],
    /** Recommended strengths, by name. @type {Map<string, number>} */
    weights: new Map(),
    read: 0,
};

/** @type {Panel[]} */
let panels = [];

let timer = 0;

// --- writing into the prompt -------------------------------------------------------------------

/** Apply a change to the textbox; caret and scroll position are preserved. */
function rewrite(/** @type {HTMLTextAreaElement} */ box, /** @type {Change} */ change) {
    if (box.value.slice(change.start, change.end) === change.text) return;
    box.setRangeText(change.text, change.start, change.end, "preserve");
    host.write(box, box.value);
}

/** The same as typing: the textbox is focused, and Ctrl+Z undoes it. */
function type(/** @type {HTMLTextAreaElement} */ box, /** @type {Change} */ change) {
    box.focus({ preventScroll: true });
    box.setSelectionRange(change.start, change.end);
    const done = change.text
        ? document.execCommand("insertText", false, change.text)
        : document.execCommand("delete");
    if (!done) rewrite(box, change);
}

// --- one row -----------------------------------------------------------------------------------

/** A signature of a row without its numbers: rows are redrawn if it changes. */
const signature = (/** @type {Tag} */ tag) =>
    [tag.name, tag.separate, known.weights.get(tag.name), isUnreadable(tag)].join("\n");

const isUnreadable = (/** @type {Tag} */ tag) => tag.te === null || tag.unet === null;

/** The mark of a recommended strength on a slider. */
export const markOf = (/** @type {number} */ value) => ({
    value,
    label: t("Recommended: {strength}", { strength: loraTags.format(value) }),
});

/** The `index`th tag of the prompt: its name, sliders, and a button to remove it. */
class TagRow {
    /**
     * @param {Panel} panel
     * @param {number} index
     * @param {Tag} tag
     */
    constructor(panel, index, tag) {
        const { name, separate } = tag;
        this.panel = panel;
        this.index = index;
        this.signature = signature(tag);
        this.te = this.slider(
            tag,
            "te",
            separate
                ? t("Strength of {name} in the text encoder", { name })
                : t("Strength of {name}", { name }),
        );
        this.unet = separate
            ? this.slider(tag, "unet", t("Strength of {name} in the image model", { name }))
            : null;
        const remove = widgets.button({ label: t("Remove"), onclick: () => panel.remove(index) });
        remove.setAttribute("aria-label", t("Remove {name} from the prompt", { name }));
        this.element = el(
            "li.lora-trainer-strength-row",
            el("span.lora-trainer-strength-name", { title: name }, name),
            this.unet
                ? el(
                      "div.lora-trainer-strength-pair",
                      named(t("Text"), this.te),
                      named(t("Image"), this.unet),
                  )
                : this.te.element,
            remove,
            isUnreadable(tag)
                ? el(
                      "p.lora-trainer-hint.lora-trainer-strength-note",
                      t(
                          "A number in this tag cannot be read; the WebUI would ignore all LoRAs. Move the slider to write a new one.",
                      ),
                  )
                : null,
        );
    }

    slider(/** @type {Tag} */ tag, /** @type {Which} */ which, /** @type {string} */ label) {
        const weight = known.weights.get(tag.name);
        return widgets.slider({
            label,
            value: tag[which] ?? 1,
            minimum: 0,
            maximum: MAXIMUM,
            step: STEP,
            mark: weight === undefined ? null : markOf(weight),
            onchange: (strength) => this.write(which, strength),
        });
    }

    write(/** @type {Which} */ which, /** @type {number} */ strength) {
        const { box } = this.panel;
        const found = box && loraTags.find(box.value)[this.index];
        if (!found || !Number.isFinite(strength)) return;
        rewrite(box, loraTags.edit(found, found.separate ? which : "te", strength));
        this.panel.sync();
    }

    set(/** @type {Tag} */ now) {
        // unless it is equal: the user may be typing "0.70"
        if (now.te !== null && this.te.value !== now.te) this.te.set(now.te);
        if (this.unet && now.unet !== null && this.unet.value !== now.unet) this.unet.set(now.unet);
    }

    focus() {
        this.te.range.focus();
    }
}

const named = (
    /** @type {string} */ text,
    /** @type {ReturnType<typeof widgets.slider>} */ { element },
) =>
    el(
        "div.lora-trainer-strength-control",
        el("span.lora-trainer-help", { "aria-hidden": "true" }, text),
        element,
    );

// --- the list of our LoRAs ---------------------------------------------------------------------

function choices(/** @type {Panel} */ panel) {
    const present = new Set(panel.tags().map((tag) => tag.name));
    return known.loras.map((lora) =>
        el(
            "li",
            el(
                "button.lora-trainer-insert-choice",
                { type: "button", onclick: () => panel.insert(lora) },
                lora.preview
                    ? el("img", {
                          src: lora.preview,
                          alt: "",
                          loading: "lazy",
                          width: 40,
                          height: 40,
                      })
                    : el("span.lora-trainer-insert-blank"),
                el("span.lora-trainer-insert-name", lora.name),
                widgets.small(
                    present.has(lora.name) ? t("already in the prompt") : lora.trigger || "",
                ),
            ),
        ),
    );
}

function insertion(/** @type {Panel} */ panel) {
    const list = el("ul.lora-trainer-insert-list");
    const details = el("details.lora-trainer-insert", el("summary", t("Insert a LoRA")), list);
    const draw = () => fill(list, choices(panel));
    details.addEventListener("toggle", () => {
        if (!details.open) return;
        draw();
        learn().then(() => details.open && draw());
    });
    details.addEventListener("keydown", (event) => {
        if (event.key !== "Escape" || !details.open) return;
        // elsewhere on this page, Escape interrupts the generation
        event.stopPropagation();
        event.preventDefault();
        details.open = false;
        need(details, "summary").focus();
    });
    return details;
}

// --- a panel -----------------------------------------------------------------------------------

/** A panel below one of the host's prompts. */
class Panel {
    /** @type {HTMLTextAreaElement | null} the host's box */
    box = null;
    /** @type {string | null} the prompt as it is shown */
    text = null;
    /** @type {TagRow[]} */
    rows = [];

    constructor(/** @type {Tab} */ tab) {
        this.tab = tab;
        this.onInput = () => this.sync();
        this.list = el("ul.lora-trainer-strength-rows", { "aria-label": t("LoRAs in the prompt") });
        this.details = insertion(this);
        this.element = el(
            "div.lora-trainer.lora-trainer-strength",
            {
                id: "lora_trainer_strength_" + tab,
                role: "group",
                "aria-label": t("LoRA strength"),
                hidden: true,
                lang: host.root().lang || null,
            },
            this.list,
            this.details,
        );
    }

    tags() {
        return loraTags.find(this.box?.value ?? "");
    }

    /** Find the host's textbox, which gradio may have recreated, and move below it. */
    attach() {
        const box = host.prompts(this.tab).positive;
        if (box !== this.box) {
            this.box?.removeEventListener("input", this.onInput);
            box?.addEventListener("input", this.onInput);
            this.box = box;
            this.text = null;
        }
        if (!box || this.element.isConnected) return;
        const { tab } = this;
        const place =
            find(host.page(), "#" + tab + "_prompt_container") ??
            need(host.page(), "#" + tab + "_prompt").parentElement;
        place?.append(this.element);
    }

    detach() {
        this.box?.removeEventListener("input", this.onInput);
        this.element.remove();
    }

    /** Update to the current prompt. */
    sync(anew = false) {
        if (!this.box || (this.box.value === this.text && !anew)) return;
        this.text = this.box.value;
        const tags = this.tags();
        this.element.hidden = !tags.length && !known.loras.length;
        this.details.hidden = !known.loras.length;
        if (
            tags.length !== this.rows.length ||
            tags.some((tag, index) => signature(tag) !== this.rows[index].signature)
        )
            this.drawRows(tags);
        tags.forEach((tag, index) => this.rows[index].set(tag));
    }

    /** Redraw the rows for other tags; the focus is preserved. */
    drawRows(/** @type {Tag[]} */ tags) {
        const focused = this.rows.findIndex((old) => old.element.contains(document.activeElement));
        this.rows = tags.map((tag, index) => new TagRow(this, index, tag));
        fill(
            this.list,
            this.rows.map((row) => row.element),
        );
        this.rows[focused]?.focus();
    }

    remove(/** @type {number} */ index) {
        const tag = this.tags()[index];
        if (this.box && tag) type(this.box, loraTags.removal(this.box.value, tag));
        this.sync();
    }

    insert(/** @type {LoraView} */ lora) {
        this.details.open = false;
        const at = this.tags().findIndex((tag) => tag.name === lora.name);
        if (at < 0 && this.box) type(this.box, loraTags.addition(this.box.value, lora.tag ?? ""));
        this.sync();
        if (at >= 0) this.rows[at].focus();
    }
}

// --- LoRA data ---------------------------------------------------------------------------------

/** @type {Promise<void> | null} */
let reading = null;

/**
 * Load LoRAs and recommended strengths; at most every few seconds unless something has changed.
 */
function learn(changed = false) {
    if (reading) return reading;
    if (!changed && Date.now() - known.read < FRESH_MILLISECONDS) return Promise.resolve();
    reading = read()
        .catch(() => {
            // the panel works without recommendations, and the tab reports connection errors
        })
        .finally(() => {
            reading = null;
        });
    return reading;
}

async function read() {
    const { loras, weights } = await api.get("insertable");
    known.read = Date.now();
    known.loras = loras;
    known.weights = new Map(Object.entries(weights));
    for (const panel of panels) panel.sync(true);
}

const onScreen = (/** @type {Panel} */ { box }) => Boolean(box?.offsetParent);

function look() {
    if (document.visibilityState !== "visible") return;
    for (const panel of panels) {
        if (!panel.box?.isConnected || !panel.element.isConnected) panel.attach();
        if (onScreen(panel)) panel.sync();
    }
}

function begin() {
    for (const panel of panels) panel.detach();
    panels = TABS.filter((tab) => host.prompts(tab).positive).map((tab) => new Panel(tab));
    for (const panel of panels) {
        panel.attach();
        panel.sync();
    }
    clearInterval(timer);
    if (panels.length) timer = setInterval(look, POLL_MILLISECONDS);
    return learn(true);
}

onStart(begin);

onFirstStart(() => {
    store.on("delivered", () => learn(true));
    // a training may have ended while the tab was hidden: check when the user returns to a prompt
    if (typeof onUiTabChange === "function")
        onUiTabChange(() => {
            if (panels.some(onScreen)) learn();
        });
});
