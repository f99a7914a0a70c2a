/* The section "settings": checkpoint, name, presets, fields, and what will happen; and the set-up screen above everything while the worker's packages are missing.
 *
 * The form, its help and the presets come from the server (home.form, home.presets); what is wrong comes from POST plan. What is shown and changed is
 * the chosen dataset's draft (lora_trainer_draft.js): the preset, what was changed against it, the checkpoint and the name.
 *
 *     store keys written: checkpoint, name, preset, settings (what the server is sent), plan
 *     app.replan()        ask again what would happen, for instance after captions were edited
 *     app.plan()          what would happen, if it is known for the chosen dataset */
(function (app) {
    "use strict";

    const ADVANCED_KEY = "lora-trainer-advanced";
    /** What is right for one set of images only. */
    const OF_IMAGES = ["trigger_word", "sample_prompts"];
    const PLAN_DELAY = 400;
    const SEEN_KEY = "lora-trainer-settings-seen";
    /** Of these two one decides how long is trained: they are one field. */
    const LENGTH = ["max_train_steps", "epochs"];
    const EXAMPLES = { trigger_word: "ohwx, mychar ..." };

    const el = (...all) => app.el(...all);
    const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

    // --- the draft ---------------------------------------------------------------------------------------------------------------------

    /** changes: config key -> the visitor's own value. checkpoint: an id of the list, "loaded" or "practice". */
    const draft = (app.draft = app.draft || {});
    let facts = null;
    let ours = null;
    /** What the preset and the visitor say, without what the server only suggests: that changes with images and words. */
    let stated = null;

    /** What this WebUI does not know (any more) is not used of a draft. */
    function settle(home) {
        const known = fieldsOf(home);
        if (known.size)
            draft.changes = Object.fromEntries(
                Object.entries(draft.changes).filter(([key]) => known.has(key)),
            );
        const presets = presetsOf(home);
        const usual = home.preset;
        if (draft.preset !== "" && !presets.some((preset) => preset.id === draft.preset))
            draft.preset = presets.some((preset) => preset.id === usual)
                ? usual
                : (presets[0] || { id: "" }).id;
        if (
            draft.checkpoint !== "loaded" &&
            !(home.checkpoints || []).some((known) => known.id === draft.checkpoint)
        )
            draft.checkpoint = "loaded";
    }

    const fieldsOf = (home) =>
        new Map(
            ((home.form || {}).groups || [])
                .flatMap((group) => group.fields)
                .map((field) => [field.key, field]),
        );
    /** Those that come with the extension, then the visitor's own, which have a `file`. */
    const presetsOf = (home) => [
        ...(home.presets || []),
        ...(home.own_presets || { presets: [] }).presets,
    ];
    const presetOf = () =>
        presetsOf(app.store.get("home")).find((preset) => preset.id === draft.preset) || null;

    /** What the preset sets differently, or besides, for the chosen checkpoint's family. */
    function familyValues(preset) {
        const family = facts && (facts.practice ? "practice" : facts.family);
        return (family && preset.family_values[family]) || {};
    }

    /** What the preset sets on the chosen checkpoint. */
    function presetValues() {
        const preset = presetOf();
        return preset ? { ...preset.values, ...familyValues(preset) } : {};
    }

    /** What the server fills in from the images: a prompt for previews, since everybody wants to see something come. */
    const suggested = () => (app.plan() || {}).suggested || {};

    /** A plan for other images says nothing of these. */
    app.plan = function () {
        const plan = app.store.get("plan");
        return plan && plan.dataset === app.drafts.dataset() ? plan : null;
    };

    /** What a field is without the visitor's own change. */
    function baseValue(field) {
        const values = { ...suggested(), ...presetValues() };
        return field.key in values ? values[field.key] : field.default;
    }

    const valueOf = (field) =>
        field.key in draft.changes ? draft.changes[field.key] : baseValue(field);

    function change(field, value) {
        if (same(value, baseValue(field))) delete draft.changes[field.key];
        else draft.changes[field.key] = value;
        edited();
    }

    /** The visitor has changed the draft. */
    function edited() {
        app.drafts.note();
        publish();
    }

    /** Tell the others, and ask what would happen now. */
    function publish() {
        stated = { ...presetValues(), ...draft.changes };
        const settings = { ...suggested(), ...stated };
        app.store.set("checkpoint", draft.checkpoint);
        app.store.set("name", draft.name);
        app.store.set("preset", draft.preset);
        if (!same(settings, ours)) {
            ours = settings;
            app.store.set("settings", settings);
        }
        if (page) page.update();
        app.replan();
    }

    /** Another part of the tab has put settings in place (those of an earlier run): they become the visitor's own changes. */
    function takeOver(settings) {
        if (same(settings, ours) || !app.store.get("home")) return;
        const known = fieldsOf(app.store.get("home"));
        draft.changes = {};
        for (const [key, value] of Object.entries(settings || {})) {
            if (known.has(key) && !same(value, baseValue(known.get(key))))
                draft.changes[key] = value;
        }
        ours = settings;
        if (page) page.redraw();
        edited();
    }

    /** Another dataset was chosen, or another browser has changed this one's draft. */
    function draftChanged() {
        const home = app.store.get("home");
        if (!home) return;
        const before = app.store.get("checkpoint");
        settle(home);
        if (draft.checkpoint !== before) facts = null;
        // of other images, also the box that somebody is typing in
        if (page && drawnFor !== app.drafts.dataset()) page.redraw();
        publish();
        if (!facts) learnCheckpoint();
    }

    /** Settings of an earlier run, as GET runs/ID/draft tells them, become the draft; what is not listed here any more stays as it is chosen. */
    app.useDraft = function ({ settings, name, dataset, checkpoint }) {
        const home = app.store.get("home");
        if (dataset) app.dataset.choose(dataset);
        // of a run on other images the chosen ones do not get the trigger word, the prompts and the name
        const foreign = !dataset && app.store.get("dataset");
        const known = fieldsOf(home);
        const own = foreign
            ? Object.fromEntries(
                  OF_IMAGES.filter((key) => known.has(key)).map((key) => [
                      key,
                      valueOf(known.get(key)),
                  ]),
              )
            : {};
        if (!foreign) draft.name = name;
        if (checkpoint)
            draft.checkpoint = (home.checkpoints || []).some(
                (known) => known.id === checkpoint && known.loaded,
            )
                ? "loaded"
                : checkpoint;
        ours = null;
        takeOver({ ...settings, ...own });
        learnCheckpoint();
    };

    /** The form's fields that differ from what they are by default -> [{label, value}] in words, for an earlier run's settings. */
    app.settingWords = (settings) =>
        [...fieldsOf(app.store.get("home")).values()]
            .filter((field) => field.key in settings && !same(settings[field.key], field.default))
            .map((field) => ({
                label: field.label,
                value:
                    shownValue(field, settings[field.key]) + (field.unit ? " " + field.unit : ""),
            }));

    // --- what would happen -------------------------------------------------------------------------------------------------------------

    let planTimer = 0,
        planNumber = 0,
        planTrouble = null;

    app.replan = function (delay = PLAN_DELAY) {
        clearTimeout(planTimer);
        planTimer = setTimeout(askPlan, delay);
        if (page) page.waiting(true);
    };

    async function askPlan() {
        const number = (planNumber += 1);
        const dataset = app.store.get("dataset") || "";
        try {
            const plan = await app.api.post("plan", {
                dataset,
                checkpoint: draft.checkpoint,
                name: draft.name,
                settings: app.store.get("settings") || {},
            });
            if (number !== planNumber) return;
            planTrouble = null;
            const before = suggested();
            app.store.set("plan", { ...plan, dataset });
            if (!same(suggested(), before)) publish();
            // the images are being looked at in the background; what is found then belongs into the plan
            if (plan.unchecked > 0 && app.visible()) app.replan(1500);
        } catch (problem) {
            if (number !== planNumber) return;
            planTrouble = problem;
        }
        if (page) {
            page.waiting(false);
            page.showPlan();
        }
        summarize();
    }

    /** The datasets whose settings somebody has looked at in this browser's window. */
    const seen = () => app.kept.get(SEEN_KEY, { session: true }) || [];

    function see() {
        const id = app.store.get("dataset");
        if (id && app.current() === "settings" && !seen().includes(id))
            app.kept.set(SEEN_KEY, [...seen(), id], { session: true });
    }

    function summarize() {
        see();
        const plan = app.plan();
        const preset = presetOf();
        // before there are images nothing has been done wrong yet, and before somebody was here neither
        const wrong =
            seen().includes(app.store.get("dataset")) &&
            plan &&
            plan.problems.some(
                (problem) => problem.severity === "error" && problem.field !== "dataset",
            );
        const steps =
            plan && plan.steps ? app.count(plan.steps, "{count} step", "{count} steps") : "";
        app.summary(
            "settings",
            wrong
                ? app.t("needs attention")
                : [preset ? preset.title : "", steps].filter(Boolean).join(" \u00b7 "),
            wrong ? "problem" : "",
        );
    }

    // --- checkpoints -------------------------------------------------------------------------------------------------------------------

    /** What the chosen checkpoint is; asked at once, so that presets fit its family. */
    async function learnCheckpoint() {
        const asked = draft.checkpoint;
        let found;
        try {
            found = await app.api.post("checkpoint", { id: asked });
        } catch (problem) {
            found = { problem: problem.message, hint: problem.hint, family: null, notes: [] };
        }
        if (asked !== draft.checkpoint) return;
        facts = found;
        publish();
    }

    async function learnCheckpoints() {
        const answer = await app.api.get("checkpoints");
        const home = app.store.get("home");
        app.store.set("home", { ...home, checkpoints: answer.checkpoints, loaded: answer.loaded });
        return answer.checkpoints.some((known) => !known.seen);
    }

    function checkpointOptions(home) {
        const described = (known) =>
            known.family_name ? known.title + " \u2014 " + known.family_name : known.title;
        const loaded = home.loaded;
        const now =
            loaded &&
            (loaded.in_memory
                ? app.t("Loaded now: {title}", { title: described(loaded) })
                : app.t("Not loaded yet: {title}", { title: described(loaded) }));
        const first = { value: "loaded", label: now || app.t("Loaded now: none") };
        return [
            first,
            ...(home.checkpoints || []).map((known) => ({
                value: known.id,
                disabled: Boolean(known.problem),
                label: known.problem
                    ? app.t("{title} (cannot be trained on)", { title: known.title })
                    : described(known),
            })),
        ];
    }

    function checkpointWords() {
        if (!facts) return app.t("Looking at the checkpoint ...");
        // the plan says what is wrong with it, in its place below
        if (facts.problem) return "";
        const parts = [
            facts.family_name,
            facts.resolution ? app.t("made for {side} pixels", { side: facts.resolution }) : "",
            facts.vae ? app.t("VAE {name}", { name: facts.vae }) : "",
            facts.clip_skip && facts.family !== "sdxl"
                ? app.t("clip skip {number}", { number: facts.clip_skip })
                : "",
        ];
        const line = parts.filter(Boolean).join(" \u00b7 ");
        return facts.notes.length ? app.sentences(line, facts.notes) : line;
    }

    function checkpointCard() {
        const home = () => app.store.get("home");
        const select = app.widgets.select({
            value: draft.checkpoint,
            options: checkpointOptions(home()),
            id: "lora_trainer_checkpoint",
            onchange: (id) => {
                draft.checkpoint = id;
                facts = null;
                edited();
                learnCheckpoint();
            },
        });
        const words = el("p", {
            class: "lora-trainer-help lora-trainer-settings-line",
            role: "status",
            id: "lora_trainer_checkpoint_words",
        });
        select.setAttribute("aria-describedby", words.id);
        const unusable = el("details", { class: "lora-trainer-settings-unusable" });
        const problem = el("div", { class: "lora-trainer-settings-problem" });
        let drawn = null;
        const element = el(
            "div",
            { class: "lora-trainer-field" },
            el("label", { for: select.id }, app.t("Checkpoint")),
            select,
            words,
            problem,
            unusable,
        );

        function update() {
            const options = checkpointOptions(home());
            if (!same(options, drawn)) {
                drawn = options;
                app.fill(
                    select,
                    options.map((option) =>
                        el(
                            "option",
                            { value: option.value, disabled: option.disabled || null },
                            option.label,
                        ),
                    ),
                );
                const refused = (home().checkpoints || []).filter((known) => known.problem);
                unusable.hidden = !refused.length;
                app.fill(
                    unusable,
                    el(
                        "summary",
                        {},
                        app.count(
                            refused.length,
                            "{count} checkpoint cannot be trained on",
                            "{count} checkpoints cannot be trained on",
                        ),
                    ),
                    el(
                        "ul",
                        {},
                        refused.map((known) =>
                            el("li", {}, app.sentences(known.problem, known.hint)),
                        ),
                    ),
                );
            }
            select.value = draft.checkpoint;
            put(words, checkpointWords());
        }
        return { element, update, input: select, problem };
    }

    function nameCard() {
        const input = app.widgets.text({
            value: draft.name,
            maxlength: 100,
            id: "lora_trainer_name",
            oninput: (name) => {
                draft.name = name;
                edited();
            },
        });
        const problem = el("div", { class: "lora-trainer-settings-problem" });
        const element = app.widgets.labelled(app.t("Name of the LoRA"), input, {
            help: app.t(
                "What you will write in a prompt: <lora:NAME:0.7>. Empty: the name of the images.",
            ),
            problem,
        });
        return {
            element,
            input,
            problem,
            update() {
                const dataset = app.dataset.chosen();
                input.placeholder = dataset ? dataset.name : "";
                if (document.activeElement !== input) input.value = draft.name;
            },
        };
    }

    // --- presets -----------------------------------------------------------------------------------------------------------------------

    function presetCard(choose) {
        const why = el("p", {
            class: "lora-trainer-help lora-trainer-settings-why",
            role: "status",
        });
        const row = el("div", {
            class: "lora-trainer-row",
            role: "group",
            "aria-label": app.t("Presets"),
        });
        const troubles = el("div");
        const back = app.widgets.button({
            label: app.t("Undo my changes"),
            onclick: () => {
                draft.changes = {};
                choose(draft.preset);
            },
        });
        const save = app.widgets.button({ label: app.t("Save as a preset"), onclick: askPreset });
        const remove = app.widgets.button({
            label: app.t("Delete this preset"),
            onclick: () => deletePreset(presetOf()),
        });
        const element = el(
            "section",
            {
                class: "lora-trainer-card lora-trainer-settings-presets",
                "aria-label": app.t("Presets"),
            },
            el(
                "div",
                { class: "lora-trainer-settings-head" },
                el("h3", {}, app.t("What do you want to train?")),
                el("div", { class: "lora-trainer-row" }, remove, save, back),
            ),
            row,
            why,
            troubles,
        );
        let drawn = null,
            told = null;

        function drawButtons(presets) {
            drawn = presets.map(({ id, title }) => ({ id, title }));
            app.fill(
                row,
                drawn.map(({ id, title }) => {
                    const button = app.widgets.button({ label: title, onclick: () => choose(id) });
                    button.dataset.preset = id;
                    return button;
                }),
            );
        }

        function drawTroubles(home) {
            const found = [
                ...(home.own_presets ? home.own_presets.problems : []),
                ...(home.own_presets_problem ? [home.own_presets_problem] : []),
            ];
            if (same(found, told)) return;
            told = found;
            app.fill(
                troubles,
                found.map((problem) =>
                    app.widgets.notice("warning", problem.message, problem.hint),
                ),
            );
        }

        return {
            element,
            update() {
                const home = app.store.get("home"),
                    presets = presetsOf(home);
                if (
                    !same(
                        presets.map(({ id, title }) => ({ id, title })),
                        drawn,
                    )
                )
                    drawButtons(presets);
                drawTroubles(home);
                for (const button of row.children)
                    button.setAttribute(
                        "aria-pressed",
                        String(button.dataset.preset === draft.preset),
                    );
                const preset = presetOf();
                put(why, preset ? preset.why || settingList(preset.values) : "");
                remove.hidden = !(preset && preset.file);
                const count = Object.keys(draft.changes).length;
                back.disabled = !count;
                put(
                    back,
                    count
                        ? app.count(count, "Undo my change ({count})", "Undo my changes ({count})")
                        : app.t("Undo my changes"),
                );
            },
        };
    }

    /** What a preset without words of its own sets: "Rank 16 \u00b7 Steps 2000". */
    const settingList = (values) =>
        app
            .settingWords(values)
            .map(({ label, value }) => label + " " + value)
            .join(" \u00b7 ");

    /** The settings as they are now become a preset of the visitor's own; whose name is taken is replaced only when that is said. */
    function askPreset() {
        const now = presetOf();
        const own = now && now.file ? now : { title: "", why: "" };
        const name = app.widgets.text({ value: own.title, maxlength: 60 });
        const purpose = app.widgets.text({ value: own.why, maxlength: 300 });
        const place = el("div");
        const save = async (replace) => {
            const settings = stated;
            try {
                const { saved, ...listing } = await app.api.post("presets", {
                    title: name.value,
                    why: purpose.value,
                    values: settings,
                    replace,
                });
                draft.preset = saved;
                takeListing(listing, settings);
                return true;
            } catch (problem) {
                if (!(problem instanceof app.Problem)) throw problem;
                const anyway = app.widgets.button({
                    label: app.t("Replace it"),
                    onclick: async () => {
                        if (await save(true)) dialog.close();
                    },
                });
                app.fill(
                    place,
                    app.widgets.problem(problem, ...(problem.status === 409 ? [anyway] : [])),
                );
                return false;
            }
        };
        const dialog = app.widgets.dialog({
            title: app.t("Save as a preset"),
            body: el(
                "div",
                { class: "lora-trainer-settings-ask" },
                el(
                    "p",
                    {},
                    app.t(
                        "Everything that is set otherwise than by default is saved, except what belongs to these images or to this checkpoint.",
                    ),
                ),
                app.widgets.labelled(app.t("Name of the preset"), name),
                app.widgets.labelled(app.t("What it is for (may be empty)"), purpose),
                place,
            ),
            actions: [
                { label: app.t("Cancel") },
                { label: app.t("Save"), kind: "primary", onclick: () => save(false) },
            ],
        });
        name.focus();
    }

    async function deletePreset(preset) {
        const sure = await app.widgets.confirm({
            title: app.t("Delete {name}?", { name: preset.title }),
            kind: "stop",
            label: app.t("Move to the trash"),
            message: app.t(
                "The preset goes to the trash of LoRA Trainer's data folder. The settings stay as they are now.",
            ),
        });
        if (!sure) return;
        takeListing(
            await app.api.post("presets/" + encodeURIComponent(preset.file) + "/delete", {}),
            stated,
        );
    }

    /** The visitor's presets are others now; the settings stay what they are. */
    function takeListing(listing, settings) {
        app.store.set("home", {
            ...app.store.get("home"),
            own_presets: listing,
            own_presets_problem: null,
        });
        ours = null;
        takeOver(settings);
    }

    /** A preset that is gone, perhaps deleted in another window, leaves the settings as they are. */
    function homeChanged(home) {
        if (home.presets && home.own_presets && draft.preset && !presetOf()) {
            draft.preset = "";
            ours = null;
            takeOver(stated);
        }
        if (page) page.update();
    }

    // --- fields ------------------------------------------------------------------------------------------------------------------------

    /** A number as people write it: 0.0001 -> 1e-4. */
    function written(value) {
        if (value === null || value === undefined) return "";
        if (typeof value !== "number") return String(value);
        return value !== 0 && Math.abs(value) < 0.001
            ? value.toExponential().replace("e+", "e")
            : String(value);
    }

    /** What was typed, as the setting's kind; what is no number stays as it is, and the server says so. */
    function number(text, optional) {
        const trimmed = text.trim();
        if (trimmed === "" || trimmed === "auto") return optional ? null : "";
        return Number.isFinite(Number(trimmed)) ? Number(trimmed) : trimmed;
    }

    /** {element to show, input to label, show(value)} for a field; `hear(value)` is called when the visitor changes it. */
    function entry(field, hear, id = "lora_trainer_field_" + field.key) {
        const text = (options) => app.widgets.text({ id, ...options });
        const plain = (input, show) => ({
            element: input,
            input,
            show:
                show ||
                ((value) => {
                    if (document.activeElement !== input) input.value = written(value);
                }),
        });
        switch (field.type) {
            case "flag": {
                const input = el("input", {
                    type: "checkbox",
                    id,
                    class: "lora-trainer-checkbox",
                    onchange: (event) => hear(event.target.checked),
                });
                return {
                    element: input,
                    input,
                    row: true,
                    show: (value) => {
                        input.checked = Boolean(value);
                    },
                };
            }
            case "auto_flag": {
                const words = { auto: null, yes: true, no: false };
                const input = app.widgets.select({
                    id,
                    options: [
                        { value: "auto", label: app.t("auto") },
                        { value: "yes", label: app.t("yes") },
                        { value: "no", label: app.t("no") },
                    ],
                    onchange: (value) => hear(words[value]),
                });
                return plain(input, (value) => {
                    input.value = value === null ? "auto" : value ? "yes" : "no";
                });
            }
            case "choice": {
                const input = app.widgets.select({
                    id,
                    options: field.choices.map((choice) => ({
                        value: String(choice.value),
                        label: choice.label,
                    })),
                    onchange: (value) =>
                        hear(field.choices.find((choice) => String(choice.value) === value).value),
                });
                return plain(input, (value) => {
                    input.value = String(value);
                });
            }
            case "lines": {
                const input = text({
                    rows: 3,
                    oninput: (value) =>
                        hear(
                            value
                                .split("\n")
                                .map((line) => line.trim())
                                .filter(Boolean),
                        ),
                });
                return plain(input, (value) => {
                    if (document.activeElement !== input) input.value = (value || []).join("\n");
                });
            }
            case "list":
            case "number_list": {
                const parts = (value) =>
                    value
                        .split(/[,\uff0c]/)
                        .map((part) => part.trim())
                        .filter(Boolean);
                const input = text({
                    oninput: (value) =>
                        hear(
                            field.type === "list"
                                ? parts(value)
                                : parts(value).map((part) => number(part, false)),
                        ),
                });
                return plain(input, (value) => {
                    if (document.activeElement !== input) input.value = (value || []).join(", ");
                });
            }
            case "paragraph":
                return plain(text({ rows: 3, oninput: (value) => hear(value) }));
            case "text":
                return plain(
                    text({
                        placeholder: EXAMPLES[field.key] || "",
                        oninput: (value) => hear(value),
                    }),
                );
            default: {
                if (field.key === "preferred_weight") return weightEntry(field, id, hear);
                const optional = field.optional;
                const whole = field.type.endsWith("integer");
                const input = text({
                    placeholder: optional ? app.t("auto") : "",
                    oninput: (value) => hear(number(value, optional)),
                });
                input.inputMode = whole ? "numeric" : "decimal";
                input.addEventListener("keydown", (event) => nudge(event, field, input, hear));
                return plain(input);
            }
        }
    }

    /** For other parts of the tab that show settings of the server's: entry(field, hear, id). */
    app.settingEntry = entry;

    function weightEntry(field, id, hear) {
        const slider = app.widgets.slider({
            label: field.label,
            value: field.default,
            minimum: 0,
            maximum: 1.5,
            step: 0.05,
            onchange: hear,
        });
        slider.number.id = id;
        return {
            element: slider.element,
            input: slider.number,
            show: (value) => {
                if (document.activeElement !== slider.number) slider.set(value);
            },
        };
    }

    /** Arrow up and down, as in a number box: by the field's step, within its bounds. */
    function nudge(event, field, input, hear) {
        const way = { ArrowUp: 1, ArrowDown: -1 }[event.key];
        const now = Number(input.value);
        if (!way || !field.step || input.value.trim() === "" || !Number.isFinite(now)) return;
        event.preventDefault();
        const raised = Number((now + way * field.step).toPrecision(12));
        const next = Math.min(
            field.maximum === null ? raised : field.maximum,
            Math.max(field.minimum === null ? raised : field.minimum, raised),
        );
        input.value = written(next);
        hear(next);
    }

    function shownValue(field, value) {
        if (value === null || value === undefined || value === "")
            return field.optional ? app.t("auto") : app.t("empty");
        if (typeof value === "boolean") return value ? app.t("yes") : app.t("no");
        if (field.choices.length)
            return (
                field.choices.find((choice) => same(choice.value, value)) || {
                    label: String(value),
                }
            ).label;
        return Array.isArray(value) ? value.join(", ") : written(value);
    }

    function fieldRow(field) {
        const made = entry(field, (value) => change(field, value));
        const { input } = made;
        const label = el(
            "label",
            { for: input.id },
            field.label,
            field.unit
                ? el("span", { class: "lora-trainer-settings-unit" }, " (" + field.unit + ")")
                : null,
        );
        const back = el("button", {
            type: "button",
            class: "lora-trainer-settings-back",
            hidden: true,
            onclick: () => {
                delete draft.changes[field.key];
                input.blur();
                edited();
                input.focus();
            },
        });
        const help = el("p", { class: "lora-trainer-help", id: input.id + "_help" }, field.help);
        const note = el("p", {
            class: "lora-trainer-help lora-trainer-settings-note",
            id: input.id + "_note",
        });
        const problem = el("div", {
            class: "lora-trainer-settings-problem",
            id: input.id + "_problem",
        });
        input.setAttribute("aria-describedby", [help.id, note.id, problem.id].join(" "));
        const element = el(
            "div",
            {
                class:
                    "lora-trainer-field lora-trainer-settings-field" +
                    (made.row ? " lora-trainer-settings-flag" : ""),
                dataset: { key: field.key },
            },
            el("div", { class: "lora-trainer-settings-label" }, label, back),
            made.element,
            problem,
            help,
            note,
        );

        function update() {
            made.show(valueOf(field));
            const changed = field.key in draft.changes;
            element.classList.toggle("lora-trainer-settings-changed", changed);
            back.hidden = !changed;
            if (changed) {
                const before = shownValue(field, baseValue(field));
                put(
                    back,
                    app.t("changed; back to {value}", {
                        value: before.length > 24 ? before.slice(0, 24) + " ..." : before,
                    }),
                );
                back.setAttribute(
                    "aria-label",
                    app.t("{field} is changed; back to {value}", {
                        field: field.label,
                        value: before,
                    }),
                );
            }
            put(note, noteOf(field, changed));
        }
        return { element, update, input, problem };
    }

    /** Steps or epochs: whichever is chosen decides how long is trained, and the other box is not there. */
    function lengthRow(steps, epochs) {
        const both = [steps, epochs];
        const boxes = {
            steps: entry(steps, (value) => change(steps, value)),
            epochs: entry(epochs, (value) => change(epochs, value)),
        };
        const unit = app.widgets.select({
            label: app.t("Count in"),
            options: [
                { value: "steps", label: steps.label },
                { value: "epochs", label: epochs.label },
            ],
            onchange: choose,
        });
        for (const [by, field] of [
            ["steps", steps],
            ["epochs", epochs],
        ])
            boxes[by].input.setAttribute("aria-label", field.label);
        const name = app.id("length"),
            slot = el("div");
        const back = el("button", {
            type: "button",
            class: "lora-trainer-settings-back",
            hidden: true,
            onclick: () => {
                for (const field of both) delete draft.changes[field.key];
                edited();
                unit.focus();
            },
        });
        const help = el("p", { class: "lora-trainer-help" });
        const note = el("p", { class: "lora-trainer-help lora-trainer-settings-note" });
        const problem = el("div", { class: "lora-trainer-settings-problem" });
        const element = el(
            "div",
            {
                class: "lora-trainer-field lora-trainer-settings-field",
                role: "group",
                "aria-labelledby": name,
                dataset: { key: steps.key },
            },
            el(
                "div",
                { class: "lora-trainer-settings-label" },
                el("span", { class: "lora-trainer-label", id: name }, app.t("Training length")),
                back,
            ),
            el("div", { class: "lora-trainer-settings-length" }, slot, unit),
            problem,
            help,
            note,
        );
        let last = null,
            by = "";

        /** Steps begin with what the epochs come to, or with what was there before. */
        function choose(wanted) {
            const plan = app.plan();
            change(
                steps,
                wanted === "epochs"
                    ? null
                    : last || baseValue(steps) || (plan && plan.steps) || 1000,
            );
            boxes[wanted].input.focus();
        }

        function update() {
            const count = valueOf(steps);
            if (count !== null) last = count;
            // a box that was emptied to type another number in stays
            const now =
                count !== null || document.activeElement === boxes.steps.input ? "steps" : "epochs";
            if (now !== by) app.fill(slot, boxes[now].element);
            unit.value = by = now;
            boxes.steps.show(count);
            boxes.epochs.show(valueOf(epochs));
            const field = by === "steps" ? steps : epochs;
            const changed = both.some(({ key }) => key in draft.changes);
            element.classList.toggle("lora-trainer-settings-changed", changed);
            back.hidden = !changed;
            const before = baseValue(steps) !== null ? steps : epochs;
            if (changed) {
                const value = shownValue(before, baseValue(before)) + " " + before.label;
                put(back, app.t("changed; back to {value}", { value }));
                back.setAttribute(
                    "aria-label",
                    app.t("{field} is changed; back to {value}", {
                        field: app.t("Training length"),
                        value,
                    }),
                );
            }
            put(help, field.help);
            const plan = app.plan();
            put(
                note,
                by === "epochs" && plan && plan.steps
                    ? app.count(plan.steps, "That is {count} step.", "That is {count} steps.")
                    : noteOf(field, changed),
            );
        }
        return {
            element,
            update,
            get input() {
                return boxes[by].input;
            },
            problem,
        };
    }

    /** Why the preset sets this value, what auto comes to, or that another field goes before this one. */
    function noteOf(field, changed) {
        const plan = app.plan();
        const preset = presetOf();
        if (field.key in suggested() && !changed)
            return suggested()[field.key].length
                ? app.t(
                      "From the first caption. Write others, or empty it for no previews on the way.",
                  )
                : "";
        if (
            field.optional &&
            valueOf(field) === null &&
            plan &&
            plan.resolved &&
            field.key in plan.resolved
        )
            return app.t("auto is {value} here.", { value: written(plan.resolved[field.key]) });
        if (changed || !preset || !(field.key in presetValues()) || !preset.notes[field.key])
            return "";
        // the reason is that of the common value: another value for one family has another
        return field.key in preset.values && field.key in familyValues(preset)
            ? ""
            : app.colon(preset.title, preset.notes[field.key]);
    }

    // --- what will happen --------------------------------------------------------------------------------------------------------------

    function planCard(goTo) {
        const sentence = el("p", {
            class: "lora-trainer-settings-sentence",
            "aria-live": "polite",
        });
        const table = el("dl", { class: "lora-trainer-settings-facts" });
        const problems = el("ul", {
            class: "lora-trainer-settings-problems",
            "aria-label": app.t("What needs attention"),
        });
        const next = app.widgets.actions();
        const onward = app.widgets.button({
            label: app.t("Go on to training"),
            kind: "primary",
            local: true,
            onclick: () => app.open("train"),
        });
        let obstacle = null;
        const mend = app.widgets.button({
            label: "",
            local: true,
            onclick: () => goTo(obstacle.field),
        });
        const element = el(
            "section",
            {
                class: "lora-trainer-card lora-trainer-settings-plan",
                "aria-label": app.t("What will happen"),
            },
            el("h3", {}, app.t("What will happen")),
            sentence,
            table,
            problems,
        );
        let drawn = null;

        function show() {
            const plan = app.plan();
            if (planTrouble) {
                put(sentence, app.sentences(planTrouble.message, planTrouble.hint));
                next.say(planTrouble.message);
                return;
            }
            if (!plan || same(plan, drawn)) return;
            drawn = plan;
            const first = plan.problems.find((problem) => problem.severity === "error");
            put(sentence, plan.sentence || (first ? app.t("Training cannot start yet.") : ""));
            next.say(first ? first.message : app.planWords());
            app.fill(
                table,
                plan.facts.map((fact) =>
                    el("div", {}, el("dt", {}, fact.label), el("dd", {}, fact.value)),
                ),
            );
            app.fill(
                problems,
                plan.problems.map((problem) => problemItem(problem, goTo)),
            );
            if (plan.unchecked > 0)
                problems.append(
                    el(
                        "li",
                        { class: "lora-trainer-help" },
                        app.count(
                            plan.unchecked,
                            "{count} image is still being looked at ...",
                            "{count} images are still being looked at ...",
                        ),
                    ),
                );
            problems.hidden = !problems.children.length;
            onward.disabled = !plan.ok;
            // what cannot go on yet is mended first
            obstacle = first && first.field ? first : null;
            if (obstacle) put(mend, app.placeLabel(obstacle.field));
            app.widgets.makePrimary(mend, Boolean(obstacle));
            app.widgets.makePrimary(onward, !obstacle);
            next.fill(obstacle ? mend : null, onward);
        }
        return {
            element,
            next,
            show,
            waiting: (is) => element.setAttribute("aria-busy", String(is)),
        };
    }

    /** What is about to be trained, in the few words that the bar has room for. */
    app.planWords = function () {
        const plan = app.plan(),
            card = app.dataset.chosen();
        const steps =
            plan && plan.steps ? app.count(plan.steps, "{count} step", "{count} steps") : "";
        return [card ? app.colon(card.name, app.dataset.count(card.count)) : "", steps]
            .filter(Boolean)
            .join(" \u00b7 ");
    };

    /** Places of a problem that are no field here, with their section. */
    const SECTION_OF = { dataset: "images", captions: "captions" };

    /** Where a problem is mended, and what a button that leads there is called. */
    app.placeOf = (field) => SECTION_OF[field] || "settings";
    app.placeLabel = (field) =>
        ({ images: app.t("Go to the images"), captions: app.t("Go to the captions") })[
            SECTION_OF[field]
        ] || app.t("Show where");

    function problemItem(problem, goTo) {
        return el(
            "li",
            { class: "lora-trainer-notice lora-trainer-notice-" + problem.severity },
            el(
                "p",
                {},
                el(
                    "strong",
                    {},
                    problem.severity === "error" ? app.t("To fix: ") : app.t("Note: "),
                ),
                problem.message,
            ),
            problem.hint ? el("p", { class: "lora-trainer-hint" }, problem.hint) : null,
            problem.field
                ? el(
                      "button",
                      {
                          type: "button",
                          class: "lora-trainer-settings-show",
                          onclick: () => goTo(problem.field),
                      },
                      app.placeLabel(problem.field),
                  )
                : null,
        );
    }

    // --- the page ----------------------------------------------------------------------------------------------------------------------

    let page = null,
        drawnFor = null;

    /** Change a text only if it is another one: the host looks at the whole page after every change. */
    function put(element, text) {
        if (element.textContent !== text) element.textContent = text;
    }

    function makePage(container) {
        drawnFor = app.drafts.dataset();
        const home = app.store.get("home");
        const choose = (id) => {
            draft.preset = id;
            edited();
        };
        const checkpoint = checkpointCard(),
            name = nameCard();
        const groups = (home.form || { groups: [] }).groups;
        const fields = fieldsOf(home);
        const rows = new Map(
            [...fields.values()].map((field) => [
                field.key,
                LENGTH.includes(field.key) ? null : fieldRow(field),
            ]),
        );
        if (fields.size) {
            const length = lengthRow(...LENGTH.map((key) => fields.get(key)));
            for (const key of LENGTH) rows.set(key, length);
        }
        const grid = (group) =>
            el("div", { class: "lora-trainer-settings-grid" }, [
                ...new Set(group.fields.map((field) => rows.get(field.key).element)),
            ]);
        const presets = presetCard(choose);
        const advanced = el(
            "details",
            {
                class: "lora-trainer-card lora-trainer-settings-advanced",
                open: app.kept.get(ADVANCED_KEY) || null,
                ontoggle: () => app.kept.set(ADVANCED_KEY, advanced.open),
            },
            el("summary", {}, app.t("Advanced settings")),
            groups
                .filter((group) => group.advanced)
                .map((group) => el("fieldset", {}, el("legend", {}, group.title), grid(group))),
        );
        const places = new Map([["checkpoint", checkpoint], ["name", name], ...rows]);
        const none = el("p", { class: "lora-trainer-help", role: "status" });
        const search = app.widgets.text({
            label: app.t("Find a setting"),
            placeholder: app.t("Find a setting"),
            oninput: find,
        });
        search.type = "search";

        /** Only the settings whose name, help, key or name elsewhere has all of the words; all of them again where nothing is looked for. */
        function find(text) {
            const words = text
                .toLowerCase()
                .split(/[\s_]+/)
                .filter(Boolean);
            const fits = (field) => {
                const all = [field.label, field.help, field.terms].join(" ").toLowerCase();
                return words.every((word) => all.includes(word));
            };
            const found = [...fields.values()].filter(fits);
            const shown = new Set(found.map((field) => rows.get(field.key).element));
            for (const row of rows.values()) row.element.hidden = !shown.has(row.element);
            for (const group of advanced.querySelectorAll("fieldset"))
                group.hidden = !group.querySelector(".lora-trainer-settings-field:not([hidden])");
            advanced.hidden = words.length > 0 && !advanced.querySelector("fieldset:not([hidden])");
            if (words.length && !advanced.hidden && !advanced.open) {
                advanced.open = true;
                searched = true;
            }
            if (!words.length && searched) {
                advanced.open = false;
                searched = false;
            }
            none.textContent = found.length ? "" : app.t("No setting is called so.");
        }
        let searched = false;

        function goTo(place) {
            if (SECTION_OF[place]) {
                app.open(SECTION_OF[place]);
                return;
            }
            const found = places.get(place);
            if (!found) return;
            if (found.element.hidden) {
                search.value = "";
                find("");
            }
            if (advanced.contains(found.element)) advanced.open = true;
            found.element.scrollIntoView({ block: "center" });
            found.input.focus({ preventScroll: true });
        }

        const plan = planCard(goTo);
        app.fill(
            container,
            el(
                "div",
                { class: "lora-trainer-settings" },
                el(
                    "div",
                    { class: "lora-trainer-settings-form" },
                    home.form
                        ? null
                        : app.widgets.notice(
                              "error",
                              app.t("The settings could not be read."),
                              home.form_problem ? home.form_problem.message : "",
                          ),
                    el(
                        "section",
                        {
                            class: "lora-trainer-card lora-trainer-settings-grid",
                            "aria-label": app.t("Checkpoint and name"),
                        },
                        checkpoint.element,
                        name.element,
                    ),
                    presets.element,
                    ...groups
                        .filter((group) => !group.advanced)
                        .map((group) =>
                            el(
                                "section",
                                { class: "lora-trainer-card", "aria-label": group.title },
                                el(
                                    "div",
                                    { class: "lora-trainer-settings-head" },
                                    el("h3", {}, group.title),
                                    search,
                                ),
                                none,
                                grid(group),
                            ),
                        ),
                    advanced,
                ),
                plan.element,
            ),
            plan.next.element,
        );

        function showProblems() {
            const found = (app.plan() || { problems: [] }).problems;
            for (const row of new Set(places.values())) {
                const { problem, input } = row;
                const here = found.filter((one) => places.get(one.field) === row);
                const words = JSON.stringify(here);
                if (problem.dataset.drawn === words) continue;
                problem.dataset.drawn = words;
                input.toggleAttribute(
                    "aria-invalid",
                    here.some((one) => one.severity === "error"),
                );
                app.fill(
                    problem,
                    here.map((one) =>
                        el(
                            "p",
                            { class: "lora-trainer-settings-" + one.severity },
                            app.sentences(one.message, one.hint),
                        ),
                    ),
                );
            }
        }

        const update = () => {
            for (const part of new Set([checkpoint, name, presets, ...rows.values()]))
                part.update();
        };
        return {
            update,
            redraw: () => {
                page = makePage(container);
            },
            waiting: plan.waiting,
            showPlan() {
                plan.show();
                showProblems();
                update();
            },
        };
    }

    let looking = null;

    app.section({
        id: "settings",
        title: () => app.t("Settings"),
        draw(container) {
            page = makePage(container);
            page.update();
            page.showPlan();
        },
        shown() {
            // families become known one after the other; the list is asked for until all are
            if (looking) looking.stop();
            looking = app.poll(async () => ((await learnCheckpoints()) ? 1.5 : null));
            learnCheckpoint();
            summarize();
        },
        hidden() {
            if (looking) looking.stop();
            looking = null;
        },
    });

    // --- set-up ------------------------------------------------------------------------------------------------------------------------

    const SECONDS_INSTALLING = 1,
        SECONDS_MISSING = 4;
    let setUp = null;

    function setUpCard(setup) {
        const message = el("p", { class: "lora-trainer-setup-message" });
        const hint = el("p", { class: "lora-trainer-hint" });
        const lines = el("pre", {
            class: "lora-trainer-setup-lines",
            tabindex: "0",
            "aria-label": app.t("What the set-up says"),
        });
        const bar = app.widgets.progress(app.t("Setting up"));
        const start = app.widgets.button({
            label: app.t("Set up"),
            kind: "primary",
            onclick: async () => {
                show(await app.api.post("setup", {}));
                setUp.poll.wake();
            },
        });
        const copy = app.widgets.button({
            label: app.t("Copy a report"),
            title: app.t(
                "Versions, the WebUI and the last lines, without names and passwords: for a bug report.",
            ),
            onclick: copyReport,
        });
        const later = app.widgets.button({
            label: app.t("Later"),
            onclick: () => {
                element.hidden = true;
            },
        });
        const heading = el("h3");
        const element = el(
            "section",
            {
                class: "lora-trainer-card lora-trainer-setup",
                "aria-label": app.t("Set-up"),
                role: "status",
            },
            heading,
            message,
            hint,
            bar.element,
            el("div", { class: "lora-trainer-row" }, start, copy, later),
            lines,
        );
        let was = null;

        function show(now) {
            const busy = now.state === "installing";
            const titles = {
                ready: () => app.t("Training is set up"),
                missing: () => app.t("One step before training"),
                broken: () => app.t("The set-up is broken"),
                installing: () => app.t("Setting up ..."),
                failed: () => app.t("The set-up did not work"),
            };
            put(heading, titles[now.state]());
            put(message, now.message);
            put(hint, now.hint);
            element.dataset.state = now.state;
            // when it is done it goes; a message says so
            element.hidden = now.state === "ready" && !now.hint;
            bar.element.hidden = !busy;
            if (busy) bar.set(0, 0, now.seconds ? app.duration(now.seconds) : "");
            start.hidden = busy || (now.state === "ready" && !now.hint);
            const size = now.megabytes ? app.size(now.megabytes * 1e6) : "";
            put(
                start,
                now.state === "failed"
                    ? app.t("Try again")
                    : size
                      ? app.t("Set up (about {size})", { size })
                      : app.t("Set up"),
            );
            copy.hidden = now.state === "ready" && !now.hint;
            later.hidden = now.state !== "ready";
            const text = now.lines.join("\n");
            lines.hidden = !text || now.state === "ready";
            if (lines.textContent !== text) {
                lines.textContent = text;
                lines.scrollTop = lines.scrollHeight;
            }
            const before = was;
            was = now.state;
            if (before === null || before === now.state) return;
            // whether training can start depends on it
            app.store.set("home", { ...app.store.get("home"), setup: now });
            if (now.state !== "ready") return;
            app.widgets.toast(app.t("Everything is installed. You can train now."), {
                severity: "done",
            });
            app.refresh();
        }

        async function copyReport() {
            const answer = await app.api.get("setup", { report: "1" });
            await app.copy(answer.report);
            app.widgets.dialog({
                title: app.t("Report"),
                wide: true,
                body: el(
                    "pre",
                    { class: "lora-trainer-setup-lines", tabindex: "0" },
                    answer.report,
                ),
            });
        }

        /** It may be started, and end, in another window or at a command line. */
        async function look() {
            const now = await app.api.get("setup");
            show(now);
            if (now.state === "ready") return null;
            return now.state === "installing" ? SECONDS_INSTALLING : SECONDS_MISSING;
        }

        show(setup);
        setUp = { poll: app.poll(look) };
        return element;
    }

    // --- start -------------------------------------------------------------------------------------------------------------------------

    let listening = false;

    app.store.on("draft", draftChanged);

    app.onstart = app.onstart || [];
    app.onstart.push((home) => {
        page = null;
        ours = null;
        if (app.drafts.dataset() === null) app.drafts.enter("");
        settle(home);
        const steps = app.root().querySelector(".lora-trainer-steps");
        if (home.setup) steps.before(setUpCard(home.setup));
        // captions and images may have changed in another step
        steps.addEventListener("click", () => app.replan());
        learnCheckpoint();
        publish();
        if (listening) return;
        listening = true;
        for (const key of ["dataset", "language"]) app.store.on(key, () => app.replan());
        window.addEventListener("focus", () => {
            if (setUp) setUp.poll.wake();
        });
        app.store.on("settings", takeOver);
        app.store.on("home", homeChanged);
        if (typeof onOptionsChanged === "function")
            onOptionsChanged(() => {
                if (page && app.visible() && app.current() === "settings") {
                    learnCheckpoints();
                    if (draft.checkpoint === "loaded") learnCheckpoint();
                }
            });
    });
})((window.loraTrainer = window.loraTrainer || {}));
