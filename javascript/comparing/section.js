/*
 * The section "try": a LoRA, a prompt, a seed and a strength; the host's own pipeline makes the
 * pictures, and they stand side by side.
 *
 *     Generate         without the LoRA and with it
 *     Strength grid    0 ... 1 in a row
 *     Saved steps      each chosen step at several strengths: a table of pictures
 *
 * Which LoRA: the store's "try", set by whoever offers "Try it"; else the newest.
 */
import { Problem, api } from "../common/api.js";
import { el, fill, put, redraw, uniqueId } from "../common/elements.js";
import * as host from "../common/host.js";
import { formatDate, plural, t } from "../common/language.js";
import { startPolling } from "../common/polling.js";
import { currentSection, openSection, summarizeStep } from "../common/sections.js";
import { onStart } from "../common/start.js";
import { store } from "../common/store.js";
import * as viewer from "../common/viewer.js";
import * as widgets from "../common/widgets.js";
import * as loraTags from "../prompt/lora_tags.js";
import * as runActions from "../training/runs.js";

const MOST_STEPS = 16;

const SECONDS = 0.7,
    SECONDS_LOST = 3;

/** What the visitor has typed and unfolded; it outlives a redrawing of the page. */
const wish = {
    lora: null,
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
    prompted: "",
    unfolded: false,
};

let loras = [],
    samplers = { samplers: [], schedulers: [] },
    tries = [],
    shown = null,
    poll = null,
    page = null;

const chosen = () => loras.find((lora) => lora.id === wish.lora) || null;

const isOver = (job) => ["done", "failed", "cancelled"].includes(job.status);

const stepsOf = (lora) =>
    loras.filter((other) => lora.run && other.run === lora.run).sort((a, b) => a.step - b.step);

// --- the server --------------------------------------------------------------------------------

async function read() {
    [loras, tries] = await Promise.all([api.get("loras"), api.get("tries")]);
    const wanted = store.get("try");
    if (wanted && loras.some((lora) => lora.id === wanted)) {
        wish.lora = wanted;
        store.set("try", null);
    }
    if (!chosen()) wish.lora = loras.length ? loras[0].id : null;
    shown =
        tries.find((job) => shown && job.id === shown.id) ||
        tries.find((job) => !isOver(job)) ||
        null;
    const delivered = loras.filter((lora) => lora.delivered).length;
    summarizeStep("try", delivered ? plural(delivered, "{count} LoRA", "{count} LoRAs") : "");
}

async function readSamplers() {
    if (samplers.samplers.length) return;
    try {
        samplers = await api.get("samplers");
    } catch (problem) {
        // the host's usual sampler serves as well
        if (!(problem instanceof Problem)) throw problem;
    }
}

/** The first caption of the dataset that the LoRA was trained on is the best first prompt. */
async function firstPrompt(lora) {
    let caption = "";
    try {
        // another dataset may be chosen by now
        const dataset = lora.run
            ? (await api.get("runs/" + encodeURIComponent(lora.run) + "/draft")).dataset
            : null;
        caption = dataset
            ? (
                  (
                      await api.get("datasets/" + encodeURIComponent(dataset) + "/items", {
                          limit: 1,
                      })
                  ).items[0] || {}
              ).caption || ""
            : "";
    } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
    }
    if (!lora.trigger) return caption;
    return caption.toLowerCase().includes(lora.trigger.toLowerCase())
        ? caption
        : [lora.trigger, caption].filter(Boolean).join(", ");
}

async function look() {
    if (!shown || isOver(shown)) return null;
    const id = shown.id;
    try {
        const job = await api.get("tries/" + encodeURIComponent(id));
        if (!shown || shown.id !== id) return 0;
        shown = job;
        tries = tries.map((other) => (other.id === id ? job : other));
        page.connection(null);
        page.result();
        if (isOver(job)) {
            page.history();
            return null;
        }
        return SECONDS;
    } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        if (problem.status === 404) {
            shown = null;
            page.result();
            return null;
        }
        page.connection(problem);
        return SECONDS_LOST;
    }
}

async function begin(more) {
    const { lora, prompt, negative, seed, steps, cfg, width, height, sampler, scheduler } = wish;
    try {
        shown = await api.post("tries", {
            lora,
            prompt,
            negative,
            seed,
            steps,
            cfg,
            width,
            height,
            sampler,
            scheduler,
            ...more,
        });
        tries = [shown, ...tries.filter((job) => job.id !== shown.id)].slice(0, 20);
        page.trouble(null);
        page.result();
        page.history();
        poll.wake();
    } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        page.trouble(problem);
    }
}

/** To the trash, with a way back for as long as the message stays. */
async function remove(job) {
    const route = "tries/" + encodeURIComponent(job.id);
    await api.post(route + "/delete", {});
    tries = tries.filter((other) => other.id !== job.id);
    if (shown && shown.id === job.id) shown = null;
    const back = async () => {
        shown = await api.post(route + "/restore", {});
        tries = [shown, ...tries.filter((other) => other.id !== shown.id)].sort(
            (a, b) => b.started - a.started,
        );
        page.result();
        page.history();
    };
    page.result();
    page.history();
    widgets.toast(t("The pictures are in the trash."), {
        seconds: 15,
        action: { label: t("Undo"), onclick: back },
    });
}

// --- the form ----------------------------------------------------------------------------------

function numberField(key, label, { minimum, maximum, step, help = "" }) {
    const input = el("input", {
        type: "number",
        class: "lora-trainer-input",
        min: minimum,
        max: maximum,
        step,
        value: String(wish[key]),
        oninput: (event) => {
            if (event.target.value !== "" && event.target.validity.valid)
                wish[key] = Number(event.target.value);
        },
        onchange: (event) => {
            event.target.value = String(wish[key]);
        },
    });
    input.addEventListener("keydown", (event) => event.stopPropagation());
    input.id = "lora_trainer_try_" + key;
    return widgets.labelled(label, input, { help });
}

function seedField() {
    const field = numberField("seed", t("Seed"), {
        minimum: -1,
        maximum: 4294967295,
        step: 1,
        help: t("The same seed gives the same picture; -1 draws another one each time."),
    });
    const input = field.querySelector("input");
    const set = (value) => {
        wish.seed = value;
        input.value = String(value);
    };
    const buttons = el(
        "div",
        { class: "lora-trainer-row" },
        widgets.button({ label: t("Random"), onclick: () => set(-1) }),
        widgets.button({
            label: t("Last one"),
            title: t("The seed of the pictures shown below"),
            onclick: () => {
                if (shown) set(shown.seed);
            },
        }),
    );
    field.append(buttons);
    return field;
}

/** Each LoRA, then what its run has saved on the way; runs that have delivered none come last. */
function loraChoice(onchange) {
    const option = (lora, label) => el("option", { value: lora.id }, label);
    // the saved steps of two runs may have the same files' names
    const steps = (run) => {
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
    // two delivered LoRAs may come from one run: its steps stand below the last of them
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
    select.value = wish.lora || "";
    return widgets.labelled(t("LoRA"), select);
}

function choiceField(key, label, names) {
    const usual = { value: "", label: t("As the WebUI has it") };
    return widgets.labelled(
        label,
        widgets.select({
            value: wish[key],
            options: [usual, ...names.map((name) => ({ value: name, label: name }))],
            onchange: (value) => {
                wish[key] = value;
            },
        }),
    );
}

function more() {
    const size = { minimum: 64, maximum: 2048, step: 8 };
    return el(
        "details",
        {
            class: "lora-trainer-try-more",
            open: wish.unfolded,
            ontoggle: (event) => {
                wish.unfolded = event.target.open;
            },
        },
        el("summary", {}, t("More")),
        el(
            "div",
            { class: "lora-trainer-try-fields" },
            numberField("width", t("Width"), size),
            numberField("height", t("Height"), size),
            numberField("steps", t("Sampling steps"), { minimum: 1, maximum: 150, step: 1 }),
            numberField("cfg", t("CFG scale"), { minimum: 0, maximum: 30, step: 0.5 }),
            choiceField("sampler", t("Sampler"), samplers.samplers || []),
            (samplers.schedulers || []).length
                ? choiceField("scheduler", t("Schedule"), samplers.schedulers)
                : null,
        ),
    );
}

function strengthSlider(lora) {
    const slider = widgets.slider({
        label: t("Strength"),
        value: wish.strength,
        minimum: 0,
        maximum: 1.5,
        step: 0.05,
        mark: {
            value: lora.preferred_weight,
            label: t("Recommended: {strength}", {
                strength: loraTags.format(lora.preferred_weight),
            }),
        },
        onchange: (value) => {
            wish.strength = Math.min(2, Math.max(0, value));
            page.usable();
        },
    });
    return el(
        "div",
        { class: "lora-trainer-field" },
        el("span", { class: "lora-trainer-label", "aria-hidden": "true" }, t("Strength")),
        slider.element,
        el(
            "p",
            { class: "lora-trainer-help" },
            t("The number in {tag}. The mark is the recommended one.", {
                tag: "<lora:" + lora.name + ":" + loraTags.format(lora.preferred_weight) + ">",
            }),
        ),
    );
}

/** Which saved steps: a dialog with boxes to tick, the last few chosen beforehand. */
function askSteps(lora) {
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
                {},
                t("Each chosen step is tried at the strengths {strengths}.", {
                    strengths: lora.matrix.map(loraTags.format).join(", "),
                }),
            ),
            el(
                "ul",
                { class: "lora-trainer-checks" },
                found.map((step, at) =>
                    el(
                        "li",
                        {},
                        boxes[at],
                        runActions.picture(step.picture),
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
                label: t("Make the pictures"),
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

// --- after the pictures ------------------------------------------------------------------------

async function useStrength(lora) {
    const strength = Math.round(wish.strength * 100) / 100;
    const now = await api.post("loras/" + lora.id + "/strength", { strength });
    loras = loras.map((other) => (other.id === now.id ? now : other));
    runActions.announceDelivery();
    page.form();
    widgets.toast(
        t("A click on the card of {name} now inserts {tag}.", {
            name: now.name,
            tag: "<lora:" + now.name + ":" + loraTags.format(strength) + ">",
        }),
        { severity: "done" },
    );
}

async function deliver(lora) {
    // this section hears of it too, and reads again
    store.set("try", (await runActions.deliver(lora)).id);
}

/**
 * The prompt with the tag at the tried strength and the trigger, as "Send to txt2img" hands it
 * over.
 */
function promptFor(lora) {
    const others = loraTags.find(wish.prompt);
    let text = wish.prompt;
    for (let at = others.length - 1; at >= 0; at -= 1)
        if (others[at].name === lora.name)
            text = loraTags.apply(text, loraTags.removal(text, others[at]));
    text = text.trim();
    if (lora.trigger && !text.toLowerCase().includes(lora.trigger.toLowerCase()))
        text = [lora.trigger, text].filter(Boolean).join(", ");
    return text + loraTags.addition(text, loraTags.make(lora.name, wish.strength)).text;
}

function send(lora) {
    const seed = shown && wish.seed < 0 ? shown.seed : wish.seed;
    host.send("txt2img", {
        prompt: promptFor(lora),
        negative: wish.negative,
        ...(seed >= 0 ? { seed } : {}),
    });
}

const pictureOf = (made) => ({ url: made.url, label: made.label });

/** Pictures as they come; empty places for those still to be made, so that nothing moves. */
function pictures(job) {
    const all = job.pictures.map(pictureOf);
    const made = all.map((picture, at) => viewer.thumbnail(picture, () => viewer.open(all, at)));
    for (let at = made.length; at < job.total && !isOver(job); at += 1)
        made.push(
            el(
                "figure",
                { class: "lora-trainer-figure" },
                el("div", { class: "lora-trainer-figure-empty" }),
                el("figcaption", {}, "\u00a0"),
            ),
        );
    // a row for each step, a column for each strength
    const columns =
        job.kind === "matrix"
            ? { gridTemplateColumns: "repeat(" + job.strengths.length + ", minmax(0, 1fr))" }
            : {};
    return el(
        "div",
        { class: "lora-trainer-try-pictures lora-trainer-try-" + job.kind, style: columns },
        made,
    );
}

/** What stands below the title of a try. */
function resultBody(job) {
    const sheet = job.sheet ? { url: job.sheet, label: t("All in one picture") } : null;
    const two = job.kind === "pair" && job.pictures.length === 2;
    return [
        job.error ? widgets.notice("error", job.error.message, job.error.hint) : null,
        pictures(job),
        el(
            "div",
            { class: "lora-trainer-row" },
            two
                ? widgets.button({
                      label: t("Compare"),
                      onclick: () => viewer.compare(job.pictures.map(pictureOf)),
                  })
                : null,
            sheet
                ? widgets.button({
                      label: t("All in one picture"),
                      onclick: () => viewer.open([sheet], 0),
                  })
                : null,
            isOver(job)
                ? widgets.button({
                      label: t("Delete"),
                      title: t("These pictures go to the trash."),
                      onclick: () => remove(job),
                  })
                : null,
        ),
        job.notes.map((note) => el("p", { class: "lora-trainer-help" }, note)),
        el(
            "p",
            { class: "lora-trainer-help" },
            t("Seed {seed}", { seed: job.seed }),
            " \u00b7 ",
            job.prompt,
        ),
    ];
}

const endWords = (job) =>
    job.status === "done"
        ? t("The pictures are ready.")
        : job.status === "cancelled"
          ? t("Cancelled.")
          : "";

function resultCard() {
    const words = el("p", { class: "lora-trainer-spoken", role: "status", "aria-live": "polite" });
    const bar = widgets.progress(t("Progress of the pictures"));
    const lost = el("p", {
        class: "lora-trainer-hint lora-trainer-live-connection",
        role: "status",
    });
    const title = el("h3", {}, t("Pictures"));
    const cancel = widgets.button({
        label: t("Cancel"),
        onclick: () =>
            api
                .post("tries/" + encodeURIComponent(shown.id) + "/cancel", {})
                .then(() => poll.wake()),
    });
    const place = el("div");
    const busy = el("div", { class: "lora-trainer-try-busy" }, bar.element, cancel);
    const element = el(
        "section",
        { class: "lora-trainer-card lora-trainer-try-result", "aria-label": t("Pictures") },
        el("div", { class: "lora-trainer-try-head" }, title, busy),
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
                redraw(place, "none", () =>
                    el("p", { class: "lora-trainer-help" }, t("The pictures appear here.")),
                );
                put(words, "");
                return;
            }
            const within = job.step_count ? job.step / job.step_count : 0;
            bar.set(
                isOver(job) ? job.total : job.done + within,
                job.status === "waiting" ? 0 : job.total,
                job.sentence,
            );
            put(words, endWords(job));
            redraw(
                place,
                JSON.stringify([job.id, job.status, job.pictures, job.sheet, job.notes]),
                () => resultBody(job),
            );
        },
        connection: (problem) => put(lost, problem ? t("Connection lost, trying again ...") : ""),
    };
}

function historyCard() {
    const row = el("div", { class: "lora-trainer-try-history-row" });
    const element = el(
        "section",
        { class: "lora-trainer-card", "aria-label": t("Earlier tries") },
        el("h3", {}, t("Earlier tries")),
        row,
    );
    const words = {
        pair: () => t("Without and with"),
        grid: () => t("Strength grid"),
        matrix: () => t("Saved steps"),
    };
    const look = (job) => {
        const last = job.pictures[job.pictures.length - 1];
        return el(
            "button",
            {
                type: "button",
                class: "lora-trainer-try-history-item",
                "aria-pressed": String(Boolean(shown && shown.id === job.id)),
                title: job.prompt,
                onclick: () => {
                    shown = job;
                    page.result();
                    page.history();
                    if (!isOver(job)) poll.wake();
                },
            },
            last
                ? el("img", { src: last.url, alt: "", loading: "lazy" })
                : el("span", { class: "lora-trainer-figure-empty" }),
            el("span", {}, words[job.kind]()),
            el("span", { class: "lora-trainer-help" }, formatDate(job.started)),
        );
    };
    return {
        element,
        draw() {
            element.hidden = !tries.length;
            redraw(
                row,
                JSON.stringify([
                    shown && shown.id,
                    tries.map((job) => [job.id, job.status, job.pictures.length]),
                ]),
                () => tries.map(look),
            );
        },
    };
}

// --- the section -------------------------------------------------------------------------------

const titleOf = (lora) =>
    lora.delivered || !lora.run
        ? lora.name
        : t("{name}, step {step}", { name: lora.run, step: lora.step });

function drawNone(place) {
    fill(
        place,
        widgets.notice(
            "info",
            t("There is no LoRA to try yet."),
            t("Train one first; saved steps can be tried while the training goes on."),
        ),
    );
    page.next.say("");
    page.next.fill(
        widgets.button({
            label: t("Go to the training"),
            kind: "primary",
            local: true,
            onclick: () => openSection("train"),
        }),
    );
}

function form(place) {
    const lora = chosen();
    if (!lora) {
        drawNone(place);
        return () => {};
    }
    const prompt = widgets.text({
        rows: 3,
        value: wish.prompt,
        maxlength: 10000,
        oninput: (value) => {
            wish.prompt = value;
        },
    });
    page.prompt = prompt;
    const negative = widgets.text({
        rows: 2,
        value: wish.negative,
        maxlength: 10000,
        oninput: (value) => {
            wish.negative = value;
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
            wish.lora = id;
            take(chosen());
            page.form();
        }),
        widgets.labelled(t("Prompt"), prompt, {
            help: t("The tag and the trigger are added by themselves."),
        }),
        widgets.labelled(t("Negative prompt"), negative),
        seedField(),
        strengthSlider(lora),
        more(),
        el(
            "div",
            { class: "lora-trainer-row" },
            lora.delivered
                ? [widgets.button({ label: t("Send to txt2img"), onclick: () => send(lora) }), use]
                : widgets.button({
                      label: t("Put into the LoRA folder"),
                      onclick: () => deliver(lora),
                  }),
        ),
    );
    page.next.say(titleOf(lora));
    page.next.fill(
        widgets.button({
            label: t("Generate"),
            kind: "primary",
            onclick: () => begin({ kind: "pair", strengths: [wish.strength] }),
        }),
        widgets.button({
            label: t("Strength grid"),
            title: lora.grid.map(loraTags.format).join(", "),
            onclick: () => begin({ kind: "grid", strengths: lora.grid }),
        }),
        matrix,
    );
    return () => {
        use.disabled =
            Math.abs(wish.strength - lora.preferred_weight) < 0.005 || wish.strength <= 0;
    };
}

/**
 * What the WebUI's checkpoint was trained at, if it is of the LoRA's family; else what the family
 * was.
 */
function sizeFor(lora) {
    const loaded = (store.get("home").checkpoints || []).find(
        (checkpoint) => checkpoint.loaded && checkpoint.family === lora.family,
    );
    return (loaded && loaded.resolution) || lora.resolution || wish.width;
}

/** Another LoRA was chosen: its strength, its size, and a prompt unless one was typed. */
function take(lora) {
    if (!lora) return;
    wish.strength = lora.preferred_weight;
    wish.width = wish.height = sizeFor(lora);
    if (wish.prompt !== wish.prompted) return;
    firstPrompt(lora).then((text) => {
        if (wish.prompt !== wish.prompted || wish.lora !== lora.id) return;
        // who is about to type does not find words before their own
        if (page.prompt && document.activeElement === page.prompt) return;
        wish.prompt = wish.prompted = text;
        // into the box that stands there: another one would take it from under somebody's fingers
        if (page.prompt && page.prompt.isConnected) page.prompt.value = text;
    });
}

function draw(container) {
    const place = el("div", { class: "lora-trainer-card lora-trainer-try-form" });
    const trouble = el("div");
    const result = resultCard();
    const past = historyCard();
    let usable = () => {};
    page = {
        next: widgets.actions(),
        form() {
            usable = form(place);
            usable();
        },
        usable: () => usable(),
        trouble: (problem) => fill(trouble, problem ? widgets.problem(problem) : null),
        result: result.draw,
        connection: result.connection,
        history: past.draw,
    };
    fill(
        container,
        el(
            "div",
            { class: "lora-trainer-try" },
            el("div", { class: "lora-trainer-try-side" }, place, trouble),
            result.element,
        ),
        past.element,
        page.next.element,
    );
    poll = startPolling(look);
    result.draw();
    past.draw();
}

async function refresh() {
    const before = wish.lora;
    try {
        await Promise.all([read(), readSamplers()]);
    } catch (problem) {
        if (!(problem instanceof Problem)) throw problem;
        page.trouble(problem);
        return;
    }
    page.trouble(null);
    if (wish.lora !== before) take(chosen());
    const now = JSON.stringify([loras, wish.lora, samplers]);
    // the same form is not drawn again under somebody's fingers
    if (now !== page.drawn) page.form();
    page.drawn = now;
    page.result();
    page.history();
    poll.wake();
}

export const section = { id: "try", title: () => t("Try it"), draw, shown: refresh };

let subscribed = false;

onStart(() => {
    page = null;
    if (subscribed) return;
    subscribed = true;
    store.on("delivered", () => {
        if (page && currentSection() === "try") refresh();
    });
    store.on("try", (id) => {
        if (id && page && currentSection() === "try") refresh();
    });
});
