/*
 * The section "try": images with and without a LoRA, made by the host's pipeline.
 *
 *     Generate         without the LoRA and with it
 *     Strength grid    0 ... 1 in a row
 *     Saved steps      chosen steps x strengths
 *
 * Which LoRA: the store's "try", set by the buttons "Try it"; else the newest.
 */
import { api, expected } from "../common/api.js";
import { el, fill, put, redraw, uniqueId } from "../common/elements.js";
import * as host from "../common/host.js";
import { formatDate, plural, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection, openSection, summarizeStep } from "../common/sections.js";
import { onFirstStart, onStart } from "../common/start.js";
import { Later, home, store } from "../common/store.js";
import * as viewer from "../common/viewer.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import * as loraTags from "../prompt/lora_tags.js";
import { markOf } from "../prompt/strength_panel.js";
import * as runActions from "../training/runs.js";
import { certificateCard } from "./certificate.js";

/** @import { LoraView, Samplers, TryBody, TryImage, TryView } from "../common/answers" */
/** @import { Poll } from "../common/types" */

/** @import { Problem } from "../common/api.js" */

const MOST_STEPS = 16,
    MOST_TRIES = 20;

const SECONDS = 0.7,
    SECONDS_LOST = 3;

/** The user's input; it is kept when the page is redrawn. */
const inputs = {
    /** A LoRA's id, or "" if there is none. */
    lora: "",
    prompt: "",
    negative: "",
    seed: -1,
    steps: 20,
    cfg: 7,
    width: 512,
    height: 512,
    sampler: "",
    scheduler: "",
    strength: 0.7,
    /** Whether the advanced fields are shown. */
    unfolded: false,
};

/** The values suggested for the LoRA's family: an input that equals its suggestion may be replaced. */
const suggested = {
    steps: inputs.steps,
    cfg: inputs.cfg,
    sampler: inputs.sampler,
    scheduler: inputs.scheduler,
};

/** The suggested prompt: while the box contains it, the user has not typed anything. */
let prompted = "";

/** @type {LoraView[]} */
let loras = [];

/** @type {Samplers} */
let samplers = { samplers: [], schedulers: [] };

/** @type {TryView[]} */
let tries = [];

/** @type {TryView | null} */
let shown = null;

/** @type {Poll | null} */
let poll = null;

/** @typedef {ReturnType<typeof draw>} Page */

/** @type {Later<Page>} */
const drawn = new Later();

const chosen = () => loras.find((lora) => lora.id === inputs.lora);

const isOver = (/** @type {TryView} */ job) => ["done", "failed", "cancelled"].includes(job.status);

const stepsOf = (/** @type {LoraView} */ lora) =>
    loras
        .filter((other) => lora.run && other.run === lora.run)
        .sort((a, b) => (a.step ?? 0) - (b.step ?? 0));

/** Redraw after a try was added, removed or selected. */
function showTries() {
    const page = drawn.need();
    page.result();
    page.history();
}

// --- the server --------------------------------------------------------------------------------

async function read() {
    [loras, tries] = await Promise.all([api.get("loras"), api.get("tries")]);
    const wanted = store.get("try");
    if (wanted && loras.some((lora) => lora.id === wanted)) {
        inputs.lora = wanted;
        store.set("try", null);
    }
    if (!chosen()) inputs.lora = loras.at(0)?.id ?? "";
    shown = tries.find((job) => job.id === shown?.id) ?? tries.find((job) => !isOver(job)) ?? null;
    const delivered = loras.filter((lora) => lora.delivered).length;
    summarizeStep("try", delivered ? plural(delivered, "{count} LoRA", "{count} LoRAs") : "");
}

async function readSamplers() {
    if (samplers.samplers.length) return;
    try {
        samplers = await api.get("samplers");
    } catch (caught) {
        // the host's default sampler is used
        expected(caught);
    }
}

/** The first caption of the images that a LoRA was trained on; "" if unknown. */
async function firstCaption(/** @type {LoraView} */ lora) {
    // it may differ from the selected dataset
    const { dataset } = await api.get(`runs/${encodeURIComponent(lora.run ?? "")}/draft`);
    if (!dataset) return "";
    const page = await api.get(datasets.path("items", dataset), { limit: 1 });
    return "items" in page ? (page.items.at(0)?.caption ?? "") : "";
}

/** A suggested prompt: that caption with the trigger word. */
async function firstPrompt(/** @type {LoraView} */ lora) {
    let caption = "";
    try {
        if (lora.run) caption = await firstCaption(lora);
    } catch (caught) {
        expected(caught);
    }
    return withTrigger(lora, caption);
}

/** A prompt with the trigger word prepended unless it contains it. */
const withTrigger = (/** @type {LoraView} */ { trigger }, /** @type {string} */ text) =>
    text.toLowerCase().includes(trigger.toLowerCase())
        ? text
        : [trigger, text].filter(Boolean).join(", ");

async function look() {
    if (!shown || isOver(shown)) return null;
    const { id } = shown;
    const page = drawn.need();
    try {
        const job = await api.get(`tries/${encodeURIComponent(id)}`);
        if (shown?.id !== id) return 0;
        shown = job;
        tries = tries.map((other) => (other.id === id ? job : other));
        page.connection(false);
        page.result();
        if (!isOver(job)) return SECONDS;
        page.history();
        return null;
    } catch (caught) {
        if (expected(caught).status !== 404) {
            page.connection(true);
            return SECONDS_LOST;
        }
        shown = null;
        page.result();
        return null;
    }
}

/** Add a try as the first, and show it. */
function take(/** @type {TryView} */ job) {
    shown = job;
    tries = [job, ...tries.filter((other) => other.id !== job.id)];
}

async function begin(/** @type {Pick<TryBody, "kind" | "loras" | "strengths">} */ more) {
    const { lora, prompt, negative, seed, steps, cfg, width, height, sampler, scheduler } = inputs;
    const drawing = { prompt, negative, seed, steps, cfg, width, height, sampler, scheduler };
    const page = drawn.need();
    try {
        take(await api.post("tries", { lora, ...drawing, ...more }));
        tries = tries.slice(0, MOST_TRIES);
        page.showError(null);
        showTries();
        poll?.wake();
    } catch (caught) {
        page.showError(expected(caught));
    }
}

/** Move to the trash, with an undo button in the toast. */
async function remove(/** @type {TryView} */ job) {
    const id = encodeURIComponent(job.id);
    await api.post(`tries/${id}/delete`);
    tries = tries.filter((other) => other.id !== job.id);
    if (shown?.id === job.id) shown = null;
    const back = async () => {
        take(await api.post(`tries/${id}/restore`));
        tries.sort((a, b) => b.started - a.started);
        showTries();
    };
    showTries();
    widgets.toast(t("The images are in the trash."), {
        seconds: 15,
        action: { label: t("Undo"), onclick: back },
    });
}

// --- the form ----------------------------------------------------------------------------------

/**
 * @param {"seed" | "steps" | "cfg" | "width" | "height"} key
 * @param {string} label
 * @param {{minimum: number, maximum: number, step: number, help?: string}} options
 */
function numberField(key, label, { help, ...bounds }) {
    const input = widgets.number({
        ...bounds,
        value: inputs[key],
        id: "lora_trainer_try_" + key,
        oninput: (value) => {
            if (input.value !== "" && input.validity.valid) inputs[key] = value;
        },
    });
    // an invalid number is replaced by the last valid one
    input.addEventListener("change", () => {
        input.value = String(inputs[key]);
    });
    return { input, element: widgets.labelled(label, input, { help }) };
}

function seedField() {
    const { input, element } = numberField("seed", t("Seed"), {
        minimum: -1,
        maximum: 4294967295,
        step: 1,
        help: t("The same seed gives the same image; -1 is a random one each time."),
    });
    const set = (/** @type {number} */ value) => {
        inputs.seed = value;
        input.value = String(value);
    };
    element.append(
        widgets.row(
            widgets.button({ label: t("Random"), onclick: () => set(-1) }),
            widgets.button({
                label: t("Last seed"),
                title: t("The seed of the images shown below"),
                onclick: () => {
                    if (shown) set(shown.seed);
                },
            }),
        ),
    );
    return element;
}

/** Each LoRA, followed by the saved steps of its run; then runs without a delivered LoRA. */
function loraChoice(/** @type {(id: string) => void} */ onchange) {
    const option = (/** @type {LoraView} */ lora, /** @type {string} */ label) =>
        el("option", { value: lora.id }, label);
    // saved steps of two runs may have the same file names
    const steps = (/** @type {string | null} */ run) => {
        const saved = loras.filter((lora) => lora.run === run && !lora.delivered);
        return run && saved.length
            ? el(
                  "optgroup",
                  { label: t("{name}: saved steps", { name: run }) },
                  saved.map((lora) =>
                      option(lora, t("{name}, step {step}", { name: run, step: lora.step })),
                  ),
              )
            : null;
    };
    const delivered = loras.filter((lora) => lora.delivered);
    // two delivered LoRAs may be of one run: its steps follow the last of them
    const lastOf = new Map(delivered.map((lora) => [lora.run, lora]));
    const others = [...new Set(loras.map((lora) => lora.run))].filter((run) => !lastOf.has(run));
    const select = widgets.select({ options: [], onchange });
    fill(
        select,
        delivered.map((lora) => [
            option(lora, lora.name),
            lastOf.get(lora.run) === lora ? steps(lora.run) : null,
        ]),
        others.map(steps),
    );
    select.value = inputs.lora;
    return widgets.labelled(t("LoRA"), select);
}

/**
 * @param {"sampler" | "scheduler"} key
 * @param {string} label
 * @param {string[]} names
 */
function choiceField(key, label, names) {
    const usual = { value: "", label: t("The WebUI's default") };
    return widgets.labelled(
        label,
        widgets.select({
            value: inputs[key],
            options: [usual, ...names.map((name) => ({ value: name, label: name }))],
            onchange: (value) => {
                inputs[key] = value;
            },
        }),
    );
}

function more() {
    const size = { minimum: 64, maximum: 2048, step: 8 };
    return el(
        "details.lora-trainer-try-more",
        {
            open: inputs.unfolded,
            ontoggle: (event) => {
                inputs.unfolded = event.currentTarget.open;
            },
        },
        el("summary", t("More")),
        el(
            "div.lora-trainer-try-fields",
            numberField("width", t("Width"), size).element,
            numberField("height", t("Height"), size).element,
            numberField("steps", t("Sampling steps"), { minimum: 1, maximum: 150, step: 1 })
                .element,
            numberField("cfg", t("CFG scale"), { minimum: 0, maximum: 30, step: 0.5 }).element,
            choiceField("sampler", t("Sampler"), samplers.samplers),
            samplers.schedulers.length
                ? choiceField("scheduler", t("Schedule type"), samplers.schedulers)
                : null,
        ),
    );
}

function strengthSlider(/** @type {LoraView} */ lora) {
    const slider = widgets.slider({
        label: t("Strength"),
        value: inputs.strength,
        minimum: 0,
        maximum: 1.5,
        step: 0.05,
        mark: markOf(lora.preferred_weight),
        onchange: (value) => {
            inputs.strength = Math.min(2, Math.max(0, value));
            drawn.need().usable();
        },
    });
    return el(
        "div.lora-trainer-field",
        el("span.lora-trainer-label", { "aria-hidden": "true" }, t("Strength")),
        slider.element,
        widgets.help(
            t("The number in {tag}. The mark is the recommended one.", {
                tag: loraTags.make(lora.name, lora.preferred_weight),
            }),
        ),
    );
}

/** Description, author and licence of a LoRA, as its file states them. */
const credits = (/** @type {LoraView} */ { description, author, license, training_comment }) =>
    [
        description,
        author && t("Author: {author}", { author }),
        license && t("Licence: {license}", { license }),
        training_comment && t("Image credits: {text}", { text: training_comment }),
    ]
        .filter(Boolean)
        .map((text) => widgets.help(text));

/** A dialog to choose saved steps; the last few are preselected. */
function askSteps(/** @type {LoraView} */ lora) {
    const found = stepsOf(lora);
    const boxes = found.map((step, at) =>
        el("input", {
            type: "checkbox",
            id: uniqueId("step"),
            value: step.id,
            checked: at >= found.length - 4,
        }),
    );
    const place = el("div");
    widgets.dialog({
        title: t("Saved steps and strengths"),
        body: [
            el(
                "p",
                t("Each chosen step is tried at the strengths {strengths}.", {
                    strengths: lora.matrix.map(loraTags.format).join(", "),
                }),
            ),
            el(
                "ul.lora-trainer-checks",
                found.map((step, at) =>
                    el(
                        "li",
                        boxes[at],
                        runActions.previewImage(step.preview),
                        el(
                            "label",
                            { for: boxes[at].id },
                            step.delivered ? step.name : t("Step {step}", { step: step.step }),
                        ),
                    ),
                ),
            ),
            place,
        ],
        actions: [
            { label: t("Cancel") },
            {
                label: t("Generate the images"),
                kind: "primary",
                onclick: async () => {
                    const picked = boxes.filter((box) => box.checked).map((box) => box.value);
                    if (!picked.length || picked.length > MOST_STEPS) {
                        fill(
                            place,
                            widgets.notice(
                                "error",
                                t("Choose between 1 and {most} steps.", { most: MOST_STEPS }),
                            ),
                        );
                        return false;
                    }
                    await begin({ kind: "matrix", loras: picked, strengths: lora.matrix });
                    return true;
                },
            },
        ],
    });
}

// --- after the images ------------------------------------------------------------------------

async function useStrength(/** @type {LoraView} */ lora) {
    const strength = Math.round(inputs.strength * 100) / 100;
    const now = await api.post(`loras/${lora.id}/strength`, { strength });
    loras = loras.map((other) => (other.id === now.id ? now : other));
    runActions.announceDelivery();
    drawn.need().form();
    widgets.toast(
        t("A click on the card of {name} now inserts {tag}.", {
            name: now.name,
            tag: loraTags.make(now.name, strength),
        }),
        { severity: "done" },
    );
}

async function deliver(/** @type {LoraView} */ lora) {
    // the event makes this section reload
    store.set("try", (await runActions.deliver(lora)).id);
}

/** The prompt with the tag at the tried strength and the trigger, for "Send to txt2img". */
function promptFor(/** @type {LoraView} */ lora) {
    let text = inputs.prompt;
    for (const tag of loraTags.find(text).reverse())
        if (tag.name === lora.name) text = loraTags.apply(text, loraTags.removal(text, tag));
    text = withTrigger(lora, text.trim());
    return text + loraTags.addition(text, loraTags.make(lora.name, inputs.strength)).text;
}

function send(/** @type {LoraView} */ lora) {
    const seed = shown && inputs.seed < 0 ? shown.seed : inputs.seed;
    host.send("txt2img", {
        prompt: promptFor(lora),
        negative: inputs.negative,
        seed: seed >= 0 ? seed : undefined,
    });
}

const viewerImage = (/** @type {TryImage} */ made) => ({ url: made.url, label: made.label });

/** The images so far, with placeholders for the others to avoid layout shifts. */
function imageGrid(/** @type {TryView} */ job) {
    const all = job.images.map(viewerImage);
    const made = all.map((image, at) => viewer.thumbnail(image, () => viewer.open(all, at)));
    for (let at = made.length; at < job.total && !isOver(job); at += 1)
        made.push(
            el(
                "figure.lora-trainer-figure",
                el("div.lora-trainer-figure-empty"),
                el("figcaption", "\u00a0"),
            ),
        );
    // a row per step, a column per strength
    const columns =
        job.kind === "matrix"
            ? { gridTemplateColumns: "repeat(" + job.strengths.length + ", minmax(0, 1fr))" }
            : {};
    return el(
        "div",
        { class: "lora-trainer-try-images lora-trainer-try-" + job.kind, style: columns },
        made,
    );
}

/** The content below the title of a try. */
function resultBody(/** @type {TryView} */ job) {
    const sheet = job.sheet ? { url: job.sheet, label: t("All in one image") } : null;
    const two = job.kind === "pair" && job.images.length === 2;
    return [
        job.error ? widgets.notice("error", job.error.message, job.error.hint) : null,
        imageGrid(job),
        widgets.row(
            two
                ? widgets.button({
                      label: t("Compare"),
                      onclick: () => viewer.compare(job.images.map(viewerImage)),
                  })
                : null,
            sheet
                ? widgets.button({
                      label: t("All in one image"),
                      onclick: () => viewer.open([sheet], 0),
                  })
                : null,
            isOver(job)
                ? widgets.button({
                      label: t("Delete"),
                      title: t("Move these images to the trash."),
                      onclick: () => remove(job),
                  })
                : null,
        ),
        job.notes.map((note) => widgets.help(note)),
        widgets.help(t("Seed {seed}", { seed: job.seed }), " \u00b7 ", job.prompt),
    ];
}

const endText = (/** @type {TryView} */ job) =>
    job.status === "done"
        ? t("The images are ready.")
        : job.status === "cancelled"
          ? t("Cancelled.")
          : "";

function resultCard() {
    const words = el("p.lora-trainer-visually-hidden", { role: "status", "aria-live": "polite" });
    const bar = widgets.progress(t("Progress of the generation"));
    const lost = el("p.lora-trainer-hint.lora-trainer-live-connection", { role: "status" });
    const title = el("h3", t("Images"));
    const cancel = widgets.button({
        label: t("Cancel"),
        onclick: async () => {
            if (!shown) return;
            await api.post(`tries/${encodeURIComponent(shown.id)}/cancel`);
            poll?.wake();
        },
    });
    const place = el("div");
    const busy = el("div.lora-trainer-try-busy", bar.element, cancel);
    const element = el(
        "section.lora-trainer-card.lora-trainer-try-result",
        { "aria-label": t("Images") },
        el("div.lora-trainer-try-head", title, busy),
        words,
        place,
        lost,
    );

    return {
        element,
        draw() {
            const job = shown;
            busy.style.visibility = job && !isOver(job) ? "visible" : "hidden";
            if (!job) {
                redraw(place, "none", () => widgets.help(t("The images appear here.")));
                put(words, "");
                return;
            }
            const within = job.step_count ? job.step / job.step_count : 0;
            bar.set(
                isOver(job) ? job.total : job.done + within,
                job.status === "waiting" ? 0 : job.total,
                job.sentence,
            );
            put(words, endText(job));
            redraw(
                place,
                JSON.stringify([job.id, job.status, job.images, job.sheet, job.notes]),
                () => resultBody(job),
            );
        },
        connection: (/** @type {boolean} */ isLost) =>
            put(lost, isLost ? t("Connection lost, trying again ...") : ""),
    };
}

function historyCard() {
    const row = el("div.lora-trainer-try-history-row");
    const element = el(
        "section.lora-trainer-card",
        { "aria-label": t("Earlier tries") },
        el("h3", t("Earlier tries")),
        row,
    );
    const words = {
        pair: () => t("Without and with"),
        grid: () => t("Strength grid"),
        matrix: () => t("Saved steps"),
    };
    const look = (/** @type {TryView} */ job) => {
        const last = job.images.at(-1);
        return el(
            "button.lora-trainer-try-history-item",
            {
                type: "button",
                "aria-pressed": String(shown?.id === job.id),
                title: job.prompt,
                onclick: () => {
                    shown = job;
                    showTries();
                    if (!isOver(job)) poll?.wake();
                },
            },
            last
                ? el("img", { src: last.url, alt: "", loading: "lazy" })
                : el("span.lora-trainer-figure-empty"),
            el("span", words[job.kind]()),
            widgets.small(formatDate(job.started)),
        );
    };
    return {
        element,
        draw() {
            element.hidden = !tries.length;
            redraw(
                row,
                JSON.stringify([
                    shown?.id,
                    tries.map((job) => [job.id, job.status, job.images.length]),
                ]),
                () => tries.map(look),
            );
        },
    };
}

// --- the section -------------------------------------------------------------------------------

const titleOf = (/** @type {LoraView} */ lora) =>
    lora.delivered || !lora.run
        ? lora.name
        : t("{name}, step {step}", { name: lora.run, step: lora.step });

/** @typedef {ReturnType<typeof widgets.actions>} Actions */

function drawNone(/** @type {HTMLElement} */ place, /** @type {Actions} */ next) {
    fill(
        place,
        widgets.notice(
            "info",
            t("There is no LoRA to try yet."),
            t("Train one first; saved steps can be tried during the training."),
        ),
    );
    next.setText("");
    next.fill(
        widgets.button({
            label: t("Go to the training"),
            kind: "primary",
            local: true,
            onclick: () => openSection("train"),
        }),
    );
}

/**
 * Draw the form into its place, and its buttons into the bar `next`. Returns the prompt's textbox,
 * and a function that enables and disables the buttons.
 *
 * @param {HTMLElement} place
 * @param {Actions} next
 * @param {() => void} redraw
 */
function form(place, next, redraw) {
    const lora = chosen();
    if (!lora) {
        drawNone(place, next);
        return { prompt: null, usable: () => {} };
    }
    const prompt = widgets.lines(3, {
        value: inputs.prompt,
        maxlength: 10000,
        oninput: (value) => {
            inputs.prompt = value;
        },
    });
    const negative = widgets.lines(2, {
        value: inputs.negative,
        maxlength: 10000,
        oninput: (value) => {
            inputs.negative = value;
        },
    });
    const use = widgets.button({ label: t("Use this strength"), onclick: () => useStrength(lora) });
    const saved = stepsOf(lora).length;
    const matrix = widgets.button({
        label: t("Saved steps \u00d7 strengths"),
        disabled: saved < 2,
        title: saved < 2 ? t("The run has saved only one step.") : "",
        onclick: () => askSteps(lora),
    });
    fill(
        place,
        loraChoice((id) => {
            inputs.lora = id;
            takeLora();
            redraw();
        }),
        credits(lora),
        widgets.labelled(t("Prompt"), prompt, {
            help: t("Tag and trigger word are added automatically."),
        }),
        widgets.labelled(t("Negative prompt"), negative),
        seedField(),
        strengthSlider(lora),
        more(),
        widgets.row(
            lora.delivered
                ? [widgets.button({ label: t("Send to txt2img"), onclick: () => send(lora) }), use]
                : widgets.button({
                      label: t("Put into the LoRA folder"),
                      onclick: () => deliver(lora),
                  }),
        ),
    );
    next.setText(titleOf(lora));
    next.fill(
        widgets.button({
            label: t("Generate"),
            kind: "primary",
            onclick: () => begin({ kind: "pair", strengths: [inputs.strength] }),
        }),
        widgets.button({
            label: t("Strength grid"),
            title: lora.grid.map(loraTags.format).join(", "),
            onclick: () => begin({ kind: "grid", strengths: lora.grid }),
        }),
        matrix,
    );
    const usable = () => {
        use.disabled =
            Math.abs(inputs.strength - lora.preferred_weight) < 0.005 || inputs.strength <= 0;
    };
    return { prompt, usable };
}

/** The WebUI's checkpoint, if it is of the LoRA's family. */
function loadedFor(/** @type {LoraView} */ lora) {
    return home().checkpoints?.find(({ loaded, family }) => loaded && family === lora.family);
}

/** The resolution of that checkpoint, else the family's. */
function sizeFor(/** @type {LoraView} */ lora) {
    return loadedFor(lora)?.resolution || lora.resolution || inputs.width;
}

/**
 * Fill in the recommended values for the WebUI's checkpoint, else for the LoRA's family, except
 * where the user has chosen others.
 */
function suggestFor(/** @type {LoraView} */ lora) {
    const { sampler, scheduler } = lora;
    const next = {
        steps: loadedFor(lora)?.steps ?? lora.steps ?? 20,
        cfg: loadedFor(lora)?.cfg ?? lora.cfg ?? 7,
        sampler: samplers.samplers.includes(sampler) ? sampler : "",
        scheduler: samplers.schedulers.includes(scheduler) ? scheduler : "",
    };
    if (inputs.steps === suggested.steps) inputs.steps = next.steps;
    if (inputs.cfg === suggested.cfg) inputs.cfg = next.cfg;
    if (inputs.sampler === suggested.sampler) inputs.sampler = next.sampler;
    if (inputs.scheduler === suggested.scheduler) inputs.scheduler = next.scheduler;
    Object.assign(suggested, next);
}

/**
 * After another LoRA was chosen: fill in its strength, its size, the recommended values, and a
 * prompt unless the user has typed one.
 */
async function takeLora() {
    const lora = chosen();
    if (!lora) return;
    inputs.strength = lora.preferred_weight;
    inputs.width = inputs.height = sizeFor(lora);
    suggestFor(lora);
    const isTyped = () => inputs.prompt !== prompted;
    if (isTyped()) return;
    const text = await firstPrompt(lora);
    if (isTyped() || inputs.lora !== lora.id) return;
    const box = drawn.now?.prompt();
    // a focused textbox is not changed
    if (box && document.activeElement === box) return;
    inputs.prompt = prompted = text;
    // into the existing textbox: redrawing would lose the focus
    if (box?.isConnected) box.value = text;
}

function draw(/** @type {HTMLElement} */ container) {
    const place = el("div.lora-trainer-card.lora-trainer-try-form");
    const errorPlace = el("div");
    const result = resultCard();
    const past = historyCard();
    const certificate = certificateCard();
    const next = widgets.actions();
    /** The data that the form was drawn from. */
    let before = "";
    /** @type {ReturnType<typeof form> | null} */
    let made = null;
    fill(
        container,
        el(
            "div.lora-trainer-try",
            el("div.lora-trainer-try-side", place, errorPlace),
            result.element,
        ),
        past.element,
        certificate.element,
        next.element,
    );
    result.draw();
    past.draw();
    function drawForm() {
        made = form(place, next, drawForm);
        made.usable();
    }
    return {
        form: drawForm,
        /** Redraws only after a change, to keep the focus. */
        update() {
            const now = JSON.stringify([loras, inputs.lora, samplers]);
            if (now !== before) drawForm();
            before = now;
        },
        prompt: () => made?.prompt,
        usable: () => made?.usable(),
        showError: (/** @type {Problem | null} */ problem) =>
            fill(errorPlace, problem ? widgets.problem(problem) : null),
        result: result.draw,
        connection: result.connection,
        history: past.draw,
        certificate: certificate.update,
    };
}

async function refresh() {
    const page = drawn.need();
    const before = inputs.lora;
    try {
        await Promise.all([read(), readSamplers()]);
    } catch (caught) {
        page.showError(expected(caught));
        return;
    }
    page.showError(null);
    if (inputs.lora !== before) takeLora();
    page.update();
    page.certificate();
    showTries();
    poll?.wake();
}

export const section = {
    id: "try",
    title: () => t("Try it"),
    draw(/** @type {HTMLElement} */ container) {
        drawn.now = draw(container);
        poll = startPolling(look);
    },
    shown: refresh,
};

onStart(() => {
    drawn.now = null;
});

onFirstStart(() => {
    const again = () => {
        if (drawn.now && currentSection() === "try") refresh();
    };
    store.on("delivered", again);
    store.on("try", (id) => id && again());
});
